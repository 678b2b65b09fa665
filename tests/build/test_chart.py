"""The Helm chart, rendered by the real helm: valid objects, command lines that our programs take, good refusals."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from client.web.cli import parser as gateway_parser
from tests.build.chart_pods import DEPLOY, SETS, pods, render
from triton_models import launch

pytestmark = pytest.mark.unit
CHART = DEPLOY / "chart"


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    before = (CHART / "README.md").read_text()
    objects = render(tmp_path_factory.mktemp("chart"))
    assert (CHART / "README.md").read_text() == before, "make chart writes another README.md: commit it"
    return objects


@pytest.mark.parametrize("name", SETS)
def test_pods_are_locked_in_and_their_images_do_not_move(name: str, rendered: dict[str, list[dict[str, Any]]]) -> None:
    for pod in pods(rendered[name]).values():
        assert pod["securityContext"]["runAsNonRoot"]
        assert not pod["automountServiceAccountToken"]
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"]
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert not security["allowPrivilegeEscalation"]
            assert container["image"].rsplit(":", 1)[1] not in ("", "latest")
            assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("name", SETS)
def test_our_programs_take_the_command_lines(name: str, rendered: dict[str, list[dict[str, Any]]]) -> None:
    found = pods(rendered[name])
    server, gateway = found["server"]["containers"][0], found["gateway"]["containers"][0]
    arguments = [each.replace("$(POD_IP)", "10.0.0.7") for each in server["args"]]
    given = launch.parser().parse_args(["--engines", "/engines", "--runs", "/run/wan-streamer", *arguments])
    assert found["server"]["terminationGracePeriodSeconds"] > given.drain_seconds
    gateway_parser().parse_args(gateway["args"])


def test_the_balancer_takes_its_configuration(rendered: dict[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    (config,) = (
        thing["data"]["haproxy.cfg"]
        for thing in rendered["cpu"]
        if thing["kind"] == "ConfigMap" and "haproxy.cfg" in thing["data"]
    )
    (tmp_path / "haproxy.cfg").write_text(config)
    haproxy = shutil.which("haproxy") or "/usr/sbin/haproxy"
    done = subprocess.run(
        [haproxy, "-c", "-f", tmp_path / "haproxy.cfg"],
        capture_output=True,
        text=True,
        timeout=30,
        env={"FLEET_KEY": "k" * 64},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("rendered")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("images.tag=latest", "expected a tag that does not move"),
        ("server.gpus=1", "server.gpus: expected 0 for onnxruntime"),
        ("server.target=tensorrt", "server.gpus: expected 1 or more for tensorrt"),
        ("engines.claim=", "engines: expected a claim, or build.enabled"),
        ("engines.build.enabled=true", "engines: expected either claim or build.enabled"),
    ],
)
def test_values_that_cannot_be_are_refused(change: str, says: str) -> None:
    helm = DEPLOY.parent / "cache" / "helm" / "helm"
    done = subprocess.run(
        [helm, "template", "avatar", CHART, "--set", change], capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert says in done.stderr


def test_the_deletion_cost_of_a_pod_is_its_open_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAMESPACE", "avatars")
    monkeypatch.setenv("POD", "avatar-server-1")
    spec = importlib.util.spec_from_file_location("deletion_cost", CHART / "files" / "deletion_cost.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    ready = tmp_path / "ready.json"
    ready.write_text(json.dumps({"ready": False, "models": {"duplex": {"sessions": 3}}}))
    module.READY = ready.as_uri()
    (tmp_path / "token").write_text("secret")
    module.ACCOUNT = str(tmp_path)
    sent: list[Any] = []

    class Answer:
        def close(self) -> None: ...

    def urlopen(request: Any, **_: Any) -> Any:
        sent.append(request)
        return Answer()

    assert module.open_sessions() == 3
    monkeypatch.setattr(module.urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(module.ssl, "create_default_context", lambda cafile: None)
    module.write(3)
    assert sent[0].get_method() == "PATCH"
    assert sent[0].full_url.endswith("/namespaces/avatars/pods/avatar-server-1")
    assert json.loads(sent[0].data)["metadata"]["annotations"] == {"controller.kubernetes.io/pod-deletion-cost": "3"}
