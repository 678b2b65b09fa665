"""The whole kit, tiny, in the twin of the GPU machine: its Python and its versions, nothing of ours, no network."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import day
import pack
import pytest

from triton_models.runtime.budget.costs import STEPS

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]
TWIN = Path(os.environ.get("GPU_VENV", Path.home() / ".cache/wan-streamer-triton/gpu-venv"))


@pytest.fixture(scope="module")
def twin() -> Path:
    """Its interpreter; the environment is made once on a machine, in two minutes or so (Makefile: GPU_VENV)."""
    done = subprocess.run(["make", str(TWIN / ".ready")], cwd=pack.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return TWIN / "bin/python"


def test_every_stage_runs_with_the_versions_of_the_gpu_machine(twin: Path, tmp_path: Path) -> None:
    kit, out = tmp_path / "kit", tmp_path / "results"
    pack.fill(kit)
    env = {**os.environ, "OUT": str(out), "PYTHON": str(twin)}
    command = ["bash", str(kit / "gpu_day.sh"), "--smoke"]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    stages = json.loads((out / "stages.json").read_text())["stages"]
    assert [stage["stage"] for stage in stages] == [stage.name for stage in day.stages(smoke=True)]
    assert {stage["stage"]: stage["code"] for stage in stages if stage["code"] != 0} == {}, done.stdout[-6000:]
    assert done.returncode == 0
    machine = json.loads((out / "machine/machine.json").read_text())
    assert {name: machine[name].rpartition(".")[0] for name in ("python", "torch", "triton", "numpy")} == {
        "python": "3.12",
        "torch": "2.11",
        "triton": "3.6",
        "numpy": "2.5",
    }
    served = json.loads((out / "served/served.json").read_text())
    assert {row[0] for row in served["costs"]} == set(STEPS)  # measured, and simulated with, as on the day
    assert {"predicted sessions", "served sessions", "agree"} <= served.keys()
