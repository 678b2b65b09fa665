"""What this machine is: card, versions, whether carried kernels are found, and its ceilings. Writes OUT/machine.json.

The first stage of a GPU day: it fails on nothing that another stage can do without.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    *("torch", "triton", "numpy", "cuda-bindings", "onnx", "onnxruntime", "onnxscript", "safetensors", "tokenizers"),
    *("msgspec", "PyJWT", "pytest", "hypothesis", "tensorrt-rtx-cu13", "nvidia-cudnn-cu13", "nvidia-cudnn-frontend"),
)
CARD = "name,memory.total,memory.used,driver_version,clocks.max.sm,power.limit,temperature.gpu,mig.mode.current"


def versions() -> dict[str, Any]:
    found: dict[str, Any] = {"python": sys.version.split()[0], "cpus": os.cpu_count()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    found["compiler"] = shutil.which("gcc") or shutil.which("cc")
    found["Python.h"] = (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file()
    return found


def card() -> str:
    command = ["nvidia-smi", f"--query-gpu={CARD}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return repr(error)


def device() -> dict[str, Any]:
    """What torch and Triton say of the card, and its ceilings."""
    import torch
    from triton.runtime.cache import triton_key

    cache = Path(os.environ.get("TRITON_CACHE_DIR", ""))
    found: dict[str, Any] = {"triton key": triton_key()[:24], "carried kernels": len(list(cache.glob("*/*.cubin")))}
    if not torch.cuda.is_available():
        return {**found, "gpu": None}
    p = torch.cuda.get_device_properties(0)
    found |= {"gpu": p.name, "multiprocessors": p.multi_processor_count, "memory GiB": round(p.total_memory / 2**30, 1)}
    found["free GiB"] = round(torch.cuda.mem_get_info()[0] / 2**30, 1)

    from dataclasses import asdict

    from gpu_plan import Clock, Plan
    from gpu_preset import measure_ceilings

    where = torch.device("cuda:0")
    plan = Plan((1,), 8.0, 10, 2 << 30, 8192, 20.0, 2, 64)
    return found | {"ceilings": asdict(measure_ceilings(plan, where, Clock(where, plan.repeats)))}


def main(out: Path) -> None:
    begin = time.monotonic()
    found = versions() | {"card": card()}
    for part in (dict, device):  # what is known first is written first
        try:
            found |= part()
        except Exception as error:
            found["error"] = repr(error)
        found["seconds"] = round(time.monotonic() - begin, 1)
        (out / "machine.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
