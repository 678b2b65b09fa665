"""What the serving runtime asks for on a GPU: engines of any GPU target, and the pool that fits them.

The thinker makes the pool (`create_pool`), the performer maps it (`open_pool`); both sides load with `load_engines`. A
role has a CUDA stream of its own, so that perceive, think and render overlap with perform.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine_builder.manifest import Manifest
from engine_builder.targets.names import TENSORRT_MODULES
from triton_models.runtime.engine import EngineError, EngineSet

from .cuda_runtime import CudaRuntime
from .device_pool import DevicePool

GPU_TARGETS = (*TENSORRT_MODULES, "torch-cuda")
_PERFORMER_PRIORITY, _THINKER_PRIORITY = 0, -1  # the thinker's calls are short and feed the performer's batch


def load_engines(engine_dir: Path, steps: Sequence[str], device: str = "") -> EngineSet:
    """The engines of a role. Raises `ManifestError`, `EngineError` or `CudaError` with the reason."""
    target = Manifest.load(engine_dir).target
    priority = _PERFORMER_PRIORITY if "perform" in steps else _THINKER_PRIORITY
    if target == "torch-cuda":
        import torch  # only this target needs it

        from .captured import Lane
        from .torch_engine import load_engines as load

        device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
        return load(engine_dir, tuple(steps), str(device), Lane.on(device, priority))
    if target in TENSORRT_MODULES:
        from .tensorrt_engine import load_engines as load_plans

        return load_plans(engine_dir, steps, CudaRuntime(priority=priority))
    raise EngineError(f"{engine_dir}: expected engines of {', '.join(GPU_TARGETS)}, got {target}")


def create_pool(
    name: str, engine_dir: Path, pages: int, page_tokens: int, cuda: CudaRuntime | None = None
) -> DevicePool:
    """A zeroed pool in the precision of the engines. `PoolError` or `CudaError`."""
    manifest = Manifest.load(engine_dir)
    return DevicePool.create(name, manifest.model, pages, page_tokens, manifest.precision, cuda or CudaRuntime())


def open_pool(name: str, engine_dir: Path, cuda: CudaRuntime | None = None) -> DevicePool:
    """The pool that the thinker made. `PoolError` or `CudaError`."""
    return DevicePool.open(name, Manifest.load(engine_dir).model, cuda or CudaRuntime())
