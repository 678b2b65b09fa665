"""Asks TensorRT whether a plan is valid on this machine, in a process of its own: a wrong plan may end the process.

python -m triton_models.gpu.tensorrt.probe tensorrt-rtx PLAN -> one JSON line
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from engine_builder.manifest import TENSORRT_MODULES

TIMEOUT_SECONDS = 300  # a plan of 16 GB is read and checked once


@dataclass(frozen=True)
class Verdict:
    """What the library says: "VALID", "SUBOPTIMAL" or "INVALID" with its diagnostics, or "CRASHED"."""

    validity: str
    text: str

    @property
    def usable(self) -> bool:
        return self.validity in ("VALID", "SUBOPTIMAL")


def probe(plan: Path, target: str) -> Verdict:
    """Never raises for a bad plan: the verdict says what happened."""
    command = [sys.executable, "-m", "triton_models.gpu.tensorrt.probe", target, str(plan)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Verdict("CRASHED", f"{plan.name}: no answer within {TIMEOUT_SECONDS} s")
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Verdict("CRASHED", f"{plan.name}: the probe ended with code {done.returncode}: {last}")
    answer = json.loads(lines[-1])
    text = f"{plan.name}: {answer['library']} says {answer['validity']}"
    return Verdict(answer["validity"], text + (f" ({answer['diagnostics']})" if answer["diagnostics"] else ""))


def main(target: str, plan: Path) -> None:
    trt = importlib.import_module(TENSORRT_MODULES[target])
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    answer = {"library": f"{trt.__name__} {trt.__version__}", "validity": "INVALID", "diagnostics": ""}
    if hasattr(runtime, "get_engine_validity"):
        validity, diagnostics = runtime.get_engine_validity(plan.read_bytes())
        flags = trt.EngineInvalidityDiagnostics.__members__.items()
        answer["validity"] = validity.name
        answer["diagnostics"] = ", ".join(name for name, flag in flags if int(diagnostics) & int(flag))
    elif runtime.deserialize_cuda_engine(plan.read_bytes()) is not None:  # enterprise TensorRT can only try
        answer["validity"] = "VALID"
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
