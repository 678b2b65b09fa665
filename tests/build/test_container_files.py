"""What the container's files promise: nothing unpinned, nothing open, nothing that serving does not need."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from client.web import cli as gateway
from engine_builder import __main__ as builder
from tests.build.container_files import (
    BUILD,
    PROJECT,
    ROOT,
    closure,
    compose,
    dockerfile,
    in_context,
    requirements,
)
from triton_models import launch

pytestmark = pytest.mark.unit

ARGUMENTS, STAGES = dockerfile()
IMAGES = ("builder", "server", "appliance", "gateway")
TARGETS = ("onnxruntime", "tensorrt", "tensorrt-rtx", "torch-cuda")
COMPOSE = compose()
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PYTHON = {"python_version": "3.12", "python_full_version": "3.12.3"}  # of Ubuntu 24.04, on which Triton's image stands


# -- the Dockerfile ----------------------------------------------------------------------------------------------------
def test_base_images_are_arguments_with_a_pinned_tag() -> None:
    image, _, tag = ARGUMENTS["TRITON_IMAGE"].partition(":")
    assert image == "nvcr.io/nvidia/tritonserver"
    release = re.fullmatch(r"(\d\d)\.(\d\d)-py3", tag)
    assert release, tag
    assert (int(release[1]), int(release[2])) >= (26, 7), "older ones have remote security holes"
    assert re.fullmatch(r"python:3\.12-slim-\w+", ARGUMENTS["PYTHON_IMAGE"])
    outside = {stage.base for stage in STAGES.values()} - set(STAGES)
    assert outside == {"${TRITON_IMAGE}", "${PYTHON_IMAGE}"}


@pytest.mark.parametrize("name", IMAGES)
def test_images_run_as_a_numeric_user_that_is_not_root(name: str) -> None:
    user, _, group = STAGES[name].user.partition(":")
    assert int(user) >= 1000
    assert int(group) >= 1000


def test_no_system_packages_no_downloads_no_build_tools() -> None:
    for stage in STAGES.values():
        assert not stage.rest("ADD")
        for line in stage.rest("RUN"):
            assert not re.search(r"\b(apt|apt-get|curl|wget|gcc|make|chmod|sudo)\b", line), line
    for name in ("server", "appliance", "gateway"):
        assert not any("pip" in line for line in STAGES[name].rest("RUN")), "packages come from another stage"
        assert not any("--from=builder" in line for line in STAGES[name].rest("COPY"))


def test_every_pip_line_is_constrained() -> None:
    lines = [part for stage in STAGES.values() for line in stage.rest("RUN") for part in line.split("&&")]
    installs = [line for line in lines if "pip" in line and " install " in line]
    assert len(installs) == 6
    assert all("PIP_CONSTRAINT=/src/constraints.txt" in line for line in installs)


def test_only_the_port_of_clients_is_exposed() -> None:
    exposed = {name: port for name, stage in STAGES.items() for port in stage.rest("EXPOSE")}
    assert exposed == {"server": "8001", "gateway": "8080"}


def test_command_lines_are_ones_that_the_programs_take() -> None:
    server = STAGES["server"]
    assert server.entrypoint[:3] == ["python", "-m", "triton_models.launch"]
    for command in (server.command, SERVICES["server"]["command"]):
        args = launch.parser().parse_args([*server.entrypoint[3:], *command])
        assert args.log_to_console, "a log file would fill the tmpfs"
        assert str(args.runs) == server.directory
        assert args.health_port == 8003, "triton_models.healthcheck asks there"
    assert STAGES["builder"].entrypoint == ["python", "-m", "engine_builder"]
    build = re.search(r"python -m engine_builder (build .*?) \$\{BUILD_FLAGS\}", STAGES["engines"].rest("RUN")[0])
    assert build
    for target in TARGETS:
        builder.parser().parse_args(build[1].replace('"${TARGET}"', target).split())


# -- packages ------------------------------------------------------------------------------------------------------
def constraints() -> dict[str, str]:
    """name -> the version that holds for the image's Python."""
    found = {}
    for line in (BUILD / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate(PYTHON):
                name = canonicalize_name(requirement.name)
                assert name not in found, f"{name} is pinned twice"
                (pin,) = requirement.specifier
                assert pin.operator == "=="
                found[name] = pin.version
    return found


@pytest.mark.parametrize("target", TARGETS)
def test_packages_of_a_target_are_pinned_and_no_more_than_needed(target: str) -> None:
    assert STAGES["packages"].extras(TARGET=target) == [f"serve-{target}"]
    assert STAGES["builder"].extras(TARGET=target) == ["build", f"serve-{target}"]
    serving = closure([f"serve-{target}"], PYTHON)
    pins = constraints()
    assert (serving | closure(["build"], PYTHON)) - set(pins) == set()
    assert ("torch" in serving) == (target == "torch-cuda")
    assert not serving & {"nvidia-pytriton", "pytest", "onnx", "matplotlib"}, "pytriton brings an old tritonserver"


def test_packages_of_the_gateway_are_pinned() -> None:
    assert STAGES["gateway-packages"].extras() == ["gateway"]
    packages = closure(["gateway"], PYTHON)
    assert packages - set(constraints()) == set()
    assert not packages & {"torch", "onnxruntime", "nvidia-pytriton", "matplotlib"}


def test_pins_agree_with_the_project() -> None:
    pins = constraints()
    for requirement in requirements(list(PROJECT["optional-dependencies"])):
        if requirement.marker is None or requirement.marker.evaluate(PYTHON):
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), str(requirement)


# -- the build context -------------------------------------------------------------------------------------------------
def test_copied_files_exist_and_are_sent() -> None:
    ignored = (ROOT / ".dockerignore").read_text()
    sources = []
    for stage in STAGES.values():
        for line in stage.rest("COPY"):
            if not line.startswith("--from="):
                sources += [word.replace("${CHECKPOINT}", "checkpoints/tutor") for word in line.split()[:-1]]
    assert len(set(sources)) == 8
    for source in sources:
        path = ROOT / source
        assert path.exists(), source
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        sent = [file for file in files if in_context(str(file.relative_to(ROOT)), ignored)]
        assert sent
        assert all("__pycache__" not in file.parts for file in sent)
        assert any(file.suffix != ".pyc" for file in sent)


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".venv/bin/python",
        ".env",
        "build/runs/demo/report.json",
        "build/engines/tutor/manifest.json",
        "build/cache/voices.npz",
        "build/secrets/gateway_token",
        "tests/conftest.py",
        "client/__pycache__/stream.cpython-312.pyc",
    ],
)
def test_what_is_no_business_of_an_image_stays_out(path: str) -> None:
    assert not in_context(path, (ROOT / ".dockerignore").read_text())


def test_secrets_are_not_committed() -> None:
    assert "build/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


# -- compose -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", SERVICES)
def test_services_are_locked_down(name: str) -> None:
    service = SERVICES[name]
    assert int(service["user"].split(":")[0]) >= 1000
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    assert service["restart"] == "unless-stopped"
    assert 0 < service["pids_limit"] <= 2048
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert not service.keys() & {"privileged", "cap_add", "devices", "network_mode", "pid", "userns_mode", "env_file"}
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    for volume in service.get("volumes", []):
        assert volume["type"] == "volume" or volume["read_only"] is True
        assert "docker.sock" not in volume["source"]
    for line in service.get("tmpfs", []):
        options = line.split(":")[1].split(",")
        assert {"noexec", "nosuid", "nodev", "mode=0700"} <= set(options), "Docker would make it 1777"
        assert any(option.startswith("size=") for option in options)
    image = service["image"]
    assert "build" in service or re.search(r":v?\d+\.\d+\.\d+$", image), f"{image} is not pinned"


def test_the_server_has_what_serving_needs_and_no_more() -> None:
    server = SERVICES["server"]
    args = launch.parser().parse_args(["--engines", "/engines", *server["command"]])
    assert args.max_restarts == 0
    assert server["restart"] == "unless-stopped", "Docker starts anew what ends at its first fault"
    assert args.open == []
    assert float(server["stop_grace_period"].removesuffix("s")) > args.drain_seconds + 2 * 2.5
    assert server["ipc"] == "private"
    assert server["shm_size"] == "1gb"
    assert server["ulimits"]["memlock"] == {"soft": -1, "hard": -1}
    assert server["ulimits"]["core"] == 0
    assert [port.rsplit(":", 1)[1] for port in server["ports"]] == ["8001"]
    assert server["build"] == {
        "context": "..",
        "dockerfile": "build/Dockerfile",
        "target": "server",
        "args": ["TARGET=onnxruntime", "TRITON_IMAGE", "PYTHON_IMAGE"],
    }
    assert "test" not in server["healthcheck"], "the image's own"
    assert COMPOSE["networks"]["metrics"] == {"internal": True}


def test_the_gateway_is_closed_without_its_secret(tmp_path: Path) -> None:
    service = SERVICES["gateway"]
    assert service["depends_on"] == {"server": {"condition": "service_healthy"}}
    (token,) = [word for word in service["command"] if word.startswith("--token=")]
    assert token == f"--token=@/run/secrets/{service['secrets'][0]}"
    secret = tmp_path / "token"
    secret.write_text("s" * 32)
    command = [f"--token=@{secret}" if word == token else word for word in service["command"]]
    access = gateway.read_access(gateway.parser().parse_args(command))
    assert access.secret == "s" * 32
    assert access.origins == {"http://127.0.0.1:8080"}
    with pytest.raises(ValueError, match="token"):
        gateway.read_access(gateway.parser().parse_args([word for word in service["command"] if word != token]))


def test_a_gpu_is_reserved_for_gpu_targets() -> None:
    server = compose("compose.gpu.yaml")["services"]["server"]
    (device,) = server["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu"]}
    (kernels,) = server["tmpfs"]
    assert kernels.startswith(server["environment"]["TRITON_CACHE_DIR"] + ":")
    assert "exec" in kernels.split(",")


def test_prometheus_scrapes_the_same_under_other_names() -> None:
    here = (BUILD / "prometheus.compose.yml").read_text()
    usual = yaml.safe_load((BUILD / "observability" / "prometheus.yml").read_text())
    found = yaml.safe_load(here.replace("server:", "127.0.0.1:").replace("gateway:", "127.0.0.1:"))
    assert found["scrape_configs"][2].pop("authorization") == {"credentials_file": "/run/secrets/gateway_token"}
    assert found == usual
    for volume in SERVICES["prometheus"]["volumes"][:2]:
        assert (BUILD / volume["source"]).is_file()


# -- make image, up, down ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("command", ["image", "engine", "up", "down"])
def test_without_docker_it_says_what_to_do(command: str, tmp_path: Path) -> None:
    for tool in ("bash", "dirname", "realpath"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or tool)
    run = subprocess.run(
        [str(BUILD / "container.sh"), command], env={"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=30
    )
    assert run.returncode == 1
    assert 'the command "docker" is not installed' in run.stderr
    assert "make serve" in run.stderr


FAKE_DOCKER = """\
#!/bin/sh
echo "docker $*" >> "$RECORD"
case "$*" in *logs*) echo "page      http://127.0.0.1:8080/#token=ek_1" ;; esac
"""


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_up_builds_engines_makes_a_secret_and_starts(target: str, tmp_path: Path) -> None:
    record, secret = tmp_path / "record", tmp_path / "secrets" / "token"
    (tmp_path / "docker").write_text(FAKE_DOCKER)
    (tmp_path / "docker").chmod(0o755)
    changes = {"RECORD": record, "DOCKER": tmp_path / "docker", "TOKEN_FILE": secret, "ENGINES": tmp_path / "e" / "x"}
    run = subprocess.run(
        [str(BUILD / "container.sh"), "up"],
        env={"PATH": "/usr/bin:/bin", "TARGET": target, **{name: str(value) for name, value in changes.items()}},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert run.returncode == 0, run.stderr
    lines = record.read_text().splitlines()
    (engine,) = [line for line in lines if line.startswith("docker run")]
    assert "--network none --read-only" in engine
    assert f"build /checkpoint /engines/x --target {target}" in engine
    assert ("--gpus all" in engine) == (target == "tensorrt")
    (up,) = [line for line in lines if " up " in line]
    assert ("compose.gpu.yaml" in up) == (target == "tensorrt")
    assert "--wait" in up
    assert len(secret.read_text().strip()) == 32
    owned = secret.stat().st_uid == 10001
    assert secret.stat().st_mode & 0o777 == (0o600 if owned else 0o444), "UID 10001 reads it"
    assert secret.parent.stat().st_mode & 0o777 == 0o700, "and nobody else gets there"
    assert "#token=ek_1" in run.stderr
