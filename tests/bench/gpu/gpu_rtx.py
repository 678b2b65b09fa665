"""Are TensorRT-RTX plans valid on this device? Plans of a small step for several GPUs are built here and asked about.

RTX has no name for Hopper and neither lists nor rules it out; `Runtime.get_engine_validity` answers on the device.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from engine_builder.checkpoint import random_model
from engine_builder.export import export_step
from engine_builder.model.steps import step_specs
from engine_builder.presets import preset
from engine_builder.targets.tensorrt import Limits, PlanBuilder
from triton_models.gpu.tensorrt.probe import probe

CAPABILITIES = ("8.0", "8.9", "12.0", None)  # None: the GPU at hand
BUILD_SECONDS = 60
LIMITS = Limits(max_batch=1, max_pages=1, pool_pages=2, page_tokens=16)


def verdicts(capabilities: Sequence[str | None] = CAPABILITIES) -> dict[str, str]:
    """What the library says, or why it could not be asked, for each capability. Never raises."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        return {"all": "not asked: the package tensorrt-rtx-cu13 is not installed"}
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        graph = Path(scratch) / "render.onnx"
        spec = step_specs(random_model(preset("tiny"), 0))["render"]
        export_step(spec, graph)
        for capability in capabilities:
            plan = Path(scratch) / f"render-{capability or 'here'}.plan"
            # A build for a GPU that the library does not know may end the process.
            process = multiprocessing.get_context("spawn").Process(target=_build, args=(graph, plan, capability))
            process.start()
            process.join(BUILD_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()
            built = plan.exists() and plan.stat().st_size > 0
            answer = probe(plan, "tensorrt-rtx").text if built else f"no plan was built (exit code {process.exitcode})"
            found[capability or "here"] = answer
    return found


def _build(graph: Path, plan: Path, capability: str | None) -> None:
    config = preset("tiny")
    axes = {name: {0: "batch"} for name in ("z_video", "z_audio", "state")}
    PlanBuilder("tensorrt-rtx", config, LIMITS, capability).build_step("render", graph, plan, axes)


if __name__ == "__main__":  # python gpu_rtx.py OUT: what is known is written after each capability
    found: dict[str, str] = {}
    for each in CAPABILITIES:
        found |= verdicts((each,))
        print(found, flush=True)
        (Path(sys.argv[1]) / "rtx.json").write_text(json.dumps(found, indent=1) + "\n")
