"""The command lines of the Dockerfile and of compose.yaml, run as there: user, read-only root, tmpfs, no privileges.

Docker is replaced by namespaces (`container_box`), Triton's image by the wheel's tritonserver in the image's places,
pip's downloads by links to what is installed here: exactly the packages that the Dockerfile names, and no others.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from engine_builder.manifest import Manifest
from tests.build.chart_pods import pods, render
from tests.build.chart_pods import spec as pod_spec
from tests.build.container_box import Box, Spec
from tests.build.container_files import ELSEWHERE, ROOT, Stage, closure, compose, dockerfile
from triton_models.launcher.installation import BACKEND_FILES, find_server

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(not Box.possible(), reason="needs unshare and nsenter, and users who may make namespaces"),
]

ARGUMENTS, STAGES = dockerfile()
STATE = "/run/wan-streamer/serve/server.json"
ORIGIN = "http://127.0.0.1:8080"
SITE = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"


# -- the file system of the images ---------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, made by pip from what the Dockerfile copies."""
    source = tmp_path_factory.mktemp("src")
    for line in STAGES["packages"].rest("COPY"):
        for word in line.split()[:-1]:
            if (ROOT / word).is_dir():
                shutil.copytree(ROOT / word, source / word, ignore=shutil.ignore_patterns("__pycache__", "training"))
            else:
                shutil.copy(ROOT / word, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", source / "out", source], check=True, timeout=120)
    (wheel,) = (source / "out").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def environment(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """/opt/venv of an image: the packages of the extras that its stage installs, nothing else."""

    def make(stage: str, target: str = "onnxruntime") -> Path:
        (line,) = [run for run in STAGES[stage].rest("RUN") if "-m venv" in run]
        command = line[line.index("python3 -m venv") : line.index(" &&")].split()
        place = tmp_path_factory.mktemp(stage) / "venv"
        assert command.pop() == "/opt/venv"
        subprocess.run([sys.executable, *command[1:], place], check=True, timeout=60)
        for name in closure(STAGES[stage].extras(TARGET=target)) - set(ELSEWHERE):
            distribution = metadata.distribution(name)
            for file in distribution.files or []:
                top = file.parts[0]
                if top != ".." and not (place / SITE / top).exists():
                    (place / SITE / top).symlink_to(Path(str(distribution.locate_file(top))))
        zipfile.ZipFile(project).extractall(place / SITE)
        own = [str(place / SITE / name) for name in ("engine_builder", "triton_models", "client")]
        subprocess.run([place / "bin" / "python", "-m", "compileall", "-q", *own], check=True, timeout=60)
        return place

    return make


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """/opt/tritonserver as NVIDIA lays it out, made of the wheel's files."""
    place = tmp_path_factory.mktemp("tritonserver")
    wheel = find_server(tmp_path_factory.mktemp("backends"))
    (place / "bin").mkdir()
    (place / "bin" / "tritonserver").symlink_to(wheel.server)
    (place / "backends" / "python").mkdir(parents=True)
    for name in BACKEND_FILES:
        (place / "backends" / "python" / name).symlink_to((wheel.backends / "python" / name).resolve())
    return place


def image_spec(stage: Stage, root: Path, venv: Path, command: list[str], service: dict[str, Any]) -> Spec:
    return Spec(
        root=str(root),
        command=[*stage.entrypoint, *command],
        environment=stage.environment,
        directory=stage.directory,
        mounts={"/opt/venv": str(venv)},
        tmpfs=service.get("tmpfs", []),
    )


# -- the images ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def engines(mini_checkpoint: Path, environment: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines by the builder image, run as `make up` runs it: no network, nothing to write to but the volume."""
    place = tmp_path_factory.mktemp("volume")
    stage = STAGES["builder"]
    command = ["build", "/checkpoint", "/engines/mini", "--target", "onnxruntime", "--pool-pages", "256"]
    spec = image_spec(stage, place / "root", environment("builder"), command, {"tmpfs": ["/tmp:mode=1777"]})
    spec.mounts |= {"/checkpoint": str(mini_checkpoint), "/engines": str(place / "engines")}
    spec.writable = ["/engines"]
    (place / "engines").mkdir()
    box = Box(spec, stage.user, place / "log")
    assert box.process.wait(200) == 0, box.log.read_text()
    return place / "engines" / "mini"


@pytest.fixture(scope="module")
def server(
    engines: Path, triton: Path, environment: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Box]:
    place = tmp_path_factory.mktemp("server")
    stage, service = STAGES["server"], compose()["services"]["server"]
    # --admit-all: the machine of a test is too busy to measure. Nobody starts a container anew here.
    command = [*service["command"], "--admit-all", "--max-restarts=5"]
    spec = image_spec(stage, place / "root", environment("packages"), command, service)
    spec.mounts |= {"/opt/tritonserver": str(triton), service["volumes"][0]["target"]: str(engines)}
    spec.shm_size = service["shm_size"]
    box = Box(spec, service["user"], place / "log")
    try:
        _wait(box, healthy=True)
        yield box
    finally:
        grace = float(service["stop_grace_period"].removesuffix("s"))
        code = box.stop(grace)
        assert code == 0, box.log.read_text()
        assert "[launch] stopped\n" in box.log.read_text()


def _wait(box: Box, healthy: bool, seconds: float = 60) -> str:
    """Until the image's HEALTHCHECK says so; its last words."""
    end = time.monotonic() + seconds
    while True:
        check = box.run(*STAGES["server"].healthcheck)
        if (check.returncode == 0) == healthy:
            return check.stdout.strip()
        assert time.monotonic() < end, f"{check.stdout}{check.stderr}\n{box.log.read_text()}"


def test_the_builder_leaves_good_engines(engines: Path) -> None:
    Manifest.load(engines).verify(engines, target="onnxruntime")
    assert [path.name for path in engines.parent.iterdir()] == ["mini"]
    assert engines.stat().st_mode & 0o005 == 0o005, "UID 10001 reads them, whoever built them"


@pytest.mark.parametrize(
    ("target", "rooms"),
    [("torch-cuda", "cuda kernels torch_cuda"), ("tensorrt", "cuda tensorrt"), ("tensorrt-rtx", "cuda tensorrt")],
)
def test_packages_of_gpu_targets_are_what_their_modules_import(
    target: str, rooms: str, environment: Callable[..., Path]
) -> None:
    python = environment("packages", target) / "bin" / "python"
    code = f"""
import importlib, pkgutil, triton_models.launch, triton_models.gpu.serving
for room in {rooms.split()}:
    package = importlib.import_module("triton_models.gpu." + room)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(package.__name__ + "." + module.name)
"""
    found = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr


def test_the_server_is_locked_in(server: Box) -> None:
    launcher = json.loads(server.run("cat", STATE).stdout)["launcher_pid"]
    facts = server.run(
        "python",
        "-c",
        "import os, pathlib, json\n"
        f"lines = pathlib.Path('/proc/{launcher}/status').read_text().splitlines()\n"
        "launcher = dict(line.split(':\\t') for line in lines if ':\\t' in line)\n"
        "writable = [p for p in ('/', '/opt/venv', '/engines', '/etc', '/usr', '/tmp') if os.access(p, os.W_OK)]\n"
        "print(json.dumps([os.getuid(), launcher['CapBnd'], launcher['CapEff'], launcher['NoNewPrivs'], writable]))",
    )
    assert facts.returncode == 0, facts.stderr
    uid, bounding, effective, no_new_privileges, writable = json.loads(facts.stdout)
    assert uid == 10001
    assert int(bounding, 16) == int(effective, 16) == 0
    assert no_new_privileges == "1"
    assert writable == ["/tmp"]
    for module in ("torch", "pytriton", "onnx", "pip"):
        found = server.run("python", "-c", f"import {module}")
        assert "ModuleNotFoundError" in found.stderr, f"{module} is in the image"


def test_the_healthcheck_knows_a_dead_stage(server: Box) -> None:
    assert _wait(server, healthy=True) == "200 ready"
    pids = json.loads(server.run("cat", STATE).stdout)["model_pids"]
    assert server.run("python", "-c", f"import os; os.kill({pids['performer']}, 9)").returncode == 0
    # On a busy machine the first answer may come when the restart is under way.
    assert _wait(server, healthy=False) in (f"503 thinker (pid {pids['performer']}) has died", "503 starting")
    assert _wait(server, healthy=True) == "200 ready", "the launcher has restarted it"


def test_the_healthcheck_knows_a_launcher_that_hangs(server: Box) -> None:
    _wait(server, healthy=True)
    pid = json.loads(server.run("cat", STATE).stdout)["launcher_pid"]
    server.run("python", "-c", f"import os; os.kill({pid}, 19)")
    try:
        assert _wait(server, healthy=False).startswith("no answer (TimeoutError")
    finally:
        server.run("python", "-c", f"import os; os.kill({pid}, 18)")
    _wait(server, healthy=True)


@pytest.fixture(scope="module")
def web(
    server: Box, environment: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Box, list[str]]]:
    """The gateway in the network of the server, and its healthcheck."""
    place = tmp_path_factory.mktemp("web")
    stage, service = STAGES["gateway"], compose()["services"]["gateway"]
    (place / "token").write_text("s" * 32)
    (place / "hosts").write_text("127.0.0.1 localhost server\n")
    venv = environment("gateway-packages")
    spec = image_spec(stage, place / "root", venv, service["command"], service)
    spec.mounts |= {"/run/secrets/gateway_token": str(place / "token"), "/etc/hosts": str(place / "hosts")}
    box = Box(spec, service["user"], place / "log", network_of=server)
    try:
        yield box, service["healthcheck"]["test"][1:]
    finally:
        assert box.stop(float(service["stop_grace_period"].removesuffix("s"))) == 0, box.log.read_text()


def test_the_gateway_is_healthy_while_the_server_is(web: tuple[Box, list[str]]) -> None:
    box, check = web
    end = time.monotonic() + 30
    while (found := box.run(*check)).returncode != 0:
        assert time.monotonic() < end, found.stdout + found.stderr + box.log.read_text()
    assert f"page      {ORIGIN}/#token=" in box.log.read_text()
    assert "ModuleNotFoundError" in box.run("python", "-c", "import onnxruntime").stderr


CLIENT = """
import asyncio, json
import numpy as np
import tritonclient.grpc as grpc
from client.stream import DuplexClient, UserUnit

triton = grpc.InferenceServerClient("server:8001")
closed = {}
for name, arguments in CALLS.items():
    try:
        closed[name] = str(getattr(triton, name)(*arguments))
    except grpc.InferenceServerException as error:
        closed[name] = "restricted" if "restricted" in str(error) else str(error)

async def talk():
    async with await DuplexClient.connect("server:8001") as client, client.session() as session:
        shape = client.shape
        for index in range(2):
            silence = np.zeros(shape.samples, np.float32), np.zeros(shape.frames, np.uint8)
            await session.send(UserUnit(index, *silence, end=index == 1))
        return [answer.unit_index async for answer in session]

print(json.dumps([closed, asyncio.run(talk())]))
"""
CALLS = {
    "get_system_shared_memory_status": [],
    "get_cuda_shared_memory_status": [],
    "get_model_repository_index": [],
    "load_model": ["duplex"],
    "unload_model": ["duplex"],
    "get_inference_statistics": [],
    "get_log_settings": [],
    "get_trace_settings": [],
}


def test_clients_may_talk_and_nothing_else(web: tuple[Box, list[str]]) -> None:
    box, _ = web
    found = box.run("python", "-c", CLIENT.replace("CALLS", repr(CALLS)))
    assert found.returncode == 0, found.stderr
    closed, units = json.loads(found.stdout)
    assert closed == dict.fromkeys(CALLS, "restricted")
    assert units == [0, 1]


ASK = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).status)"


def _until_ok(box: Box, url: str) -> None:
    end = time.monotonic() + 60
    while (found := box.run("python3", "-c", ASK, url)).stdout.strip() != "200":
        assert time.monotonic() < end, found.stderr + box.log.read_text()
        time.sleep(0.2)


def test_pods_of_the_chart_run_as_they_are_rendered(
    engines: Path, triton: Path, environment: Callable[..., Path], tmp_path: Path
) -> None:
    """Command lines, volumes, user and read-only root of the CPU's values. What a cluster gives stays out: the sidecar
    finds no Kubernetes and goes on, the balancer no servers in DNS."""
    objects = render(tmp_path / "chart")["cpu"]
    found, boxes = pods(objects), []

    def start(name: str, number: int, stage: Stage, venv: Path, *more: str, within: Box | None = None) -> Box:
        place = tmp_path / f"{name}-{number}"
        place.mkdir()
        spec = pod_spec(found[name], found[name]["containers"][number], objects, stage, place)
        spec.mounts |= {"/opt/venv": str(venv), "/opt/tritonserver": str(triton), "/engines": str(engines)}
        spec.mounts |= {"/etc/hosts": str(tmp_path / "hosts")}
        spec.command += more
        boxes.append(Box(spec, "10001:10001", tmp_path / f"{name}-{number}.log", network_of=within))
        return boxes[-1]

    (tmp_path / "hosts").write_text("127.0.0.1 localhost avatar-balancer\n")
    packages = environment("packages")
    try:
        server = start("server", 0, STAGES["server"], packages, "--admit-all", "--drain-seconds=0")
        _until_ok(server, "http://127.0.0.1:8003/ready")
        start("gateway", 0, STAGES["gateway"], environment("gateway-packages"), within=server)
        _until_ok(boxes[-1], "http://127.0.0.1:8080/healthz")
        sidecar = start("server", 1, STAGES["server"], packages, within=server)
        haproxy = Stage("haproxy", "", entrypoint=["/usr/sbin/haproxy"], environment={"PATH": "/usr/sbin:/usr/bin"})
        _until_ok(start("balancer", 0, haproxy, packages), "http://127.0.0.1:8404/live")
        while "deletion cost: " not in sidecar.log.read_text():
            assert sidecar.process.poll() is None
            time.sleep(0.1)
    finally:
        codes = [box.stop(30) for box in boxes]
    assert codes[:2] == [0, 0]


def test_every_python_program_of_the_files_was_run_here() -> None:
    """Whoever adds one adds a test of it."""
    programs = set()
    for stage in STAGES.values():
        text = " ".join([*(line for name, line in stage.lines if name == "RUN"), *stage.entrypoint, *stage.healthcheck])
        programs |= set(re.findall(r"python3? -m (\S+)", text))
    for service in compose()["services"].values():
        programs |= set(re.findall(r"python3? -m (\S+)", " ".join(service.get("healthcheck", {}).get("test", []))))
    assert programs == {
        "venv",
        "compileall",
        "engine_builder",
        "triton_models.launch",
        "triton_models.healthcheck",
        "client.web",
    }
