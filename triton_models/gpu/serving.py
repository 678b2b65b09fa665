"""What the serving runtime asks for on a GPU: engines of any GPU target, pools and solvers that fit them.

A role has a CUDA stream of its own, so that perceive and think overlap with perform and render.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine_builder.config import ModelConfig
from engine_builder.manifest import GPU_TARGETS, TENSORRT_MODULES, Manifest

from ..runtime.engines.devices import CPU, Devices, installed_gpus
from ..runtime.engines.engine import PERFORMER_STEPS, EngineError, EngineSet
from ..runtime.engines.solver import Solver
from ..runtime.engines.states import HostStates, States
from ..runtime.engines.target import Role
from ..runtime.kv.pool import Pool, PoolError
from .cuda.cuda_runtime import CudaRuntime
from .cuda.device_pool import DevicePool, Memory, MirroredPool, memory_of, name_of
from .rehearsal import rehearse

if TYPE_CHECKING:
    from .torch_cuda.group.ranks import Ranks

# Loading the engines of the other stage comes first: gigabytes are read and hashed. Triton gives a model 300 s.
WAIT_SECONDS = 240.0
_PERFORMER_PRIORITY, _THINKER_PRIORITY = 0, -1  # the thinker's calls are short and feed the performer's batch


@dataclass(frozen=True)
class DeviceTarget:
    """`runtime.engines.target.Target` of GPU engines. `ranks`: the others of a performer group whose first this is."""

    precision: str
    devices: Devices
    ranks: Ranks | None = None

    def pool(self, role: Role, name: str, config: ModelConfig, pages: int, page_tokens: int) -> Pool:
        group = len(self.devices.group)
        memory = memory_of(self.devices.performer if role == "performer" else self.devices.thinker)
        named, ranks = (name, group) if role == "performer" else ("", 1)
        pool = DevicePool.create(config, pages, page_tokens, self.precision, memory, named, ranks)
        if role != "thinker":
            return pool
        try:
            return MirroredPool(pool, *(_wait_for(name_of(name, r), config, memory, group) for r in range(group)))
        except BaseException:
            pool.close()
            raise

    def solver(self, engine: Any, pool: Pool, slots: int) -> Solver:
        """On the device, where units stay from their first step to their last."""
        if self.ranks is not None:
            from .torch_cuda.group.solver import GroupSolver  # only this target needs torch

            assert isinstance(pool, DevicePool)
            self.ranks.prepare(pool.name, pool.geometry.num_pages, pool.geometry.page_tokens, slots)
            return GroupSolver(engine.bank(pool, slots), self.ranks)
        return engine.bank(pool, slots)

    def states(self, engine: Any, start: np.ndarray, sessions: int) -> States:
        """On the device where the engine can keep them there; with a plan of TensorRT they travel at every call."""
        return engine.bank(start, sessions) if hasattr(engine, "bank") else HostStates(engine, start)

    def rehearse(self, engines: EngineSet, pool: Pool, solver: Solver | None) -> None:
        """Captures a graph of every size. The interpreter has no graphs, and no time."""
        if self.devices.gpus:
            rehearse(engines, pool, solver)

    def fault(self) -> str:
        return "" if self.ranks is None else self.ranks.fault()

    def close(self) -> None:
        if self.ranks is not None:
            self.ranks.close()


def load_engines(
    engine_dir: Path, steps: Sequence[str], device: str = "", trusted_key: Path | None = None
) -> EngineSet:
    """The engines of a role on the `device` (see `Devices.parse`) that is its own. `trusted_key`: of `Manifest.verify`.
    The further ranks of a performer group are processes that end with the target, or with this one.

    Raises `ManifestError`, `EngineError` or `CudaError` with the reason, ValueError for a device that is none.
    """
    manifest, devices = Manifest.load(engine_dir), Devices.parse(device)
    if {"think", "perform"} <= set(steps):  # both roles in this process, which is on one device
        devices = Devices(devices.thinker, devices.thinker)
    target = manifest.target
    if target not in GPU_TARGETS:
        raise EngineError(f"{engine_dir}: expected engines of {', '.join(GPU_TARGETS)}, got {target}")
    check_target(manifest, devices)
    performs, ranks = set(steps) <= set(PERFORMER_STEPS), None
    where = devices.performer if performs else devices.thinker
    if target == "torch-cuda":
        if where == CPU:
            os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported; there may be a GPU as well
        import torch  # only this target needs it

        from .torch_cuda.captured import Lane
        from .torch_cuda.engine import load_engines as load

        place = torch.device(CPU if where == CPU else f"cuda:{where}")
        lanes = Lane.on(place, _THINKER_PRIORITY), Lane.on(place, _PERFORMER_PRIORITY)
        if performs and devices.others:
            from .torch_cuda.group.ranks import Ranks

            ranks = Ranks(engine_dir, manifest.model, devices.group, trusted_key)
        exchange = None if ranks is None else ranks.exchange
        engines = load(engine_dir, tuple(steps), str(place), *lanes, trusted_key=trusted_key, exchange=exchange)
    else:
        from .tensorrt.engine import load_engines as load_plans

        streams = (CudaRuntime(int(where), priority=p) for p in (_THINKER_PRIORITY, _PERFORMER_PRIORITY))
        engines = load_plans(engine_dir, steps, *streams, trusted_key=trusted_key)
    return replace(engines, target=DeviceTarget(manifest.pool_precision, devices, ranks))


def check_target(manifest: Manifest, devices: Devices) -> None:
    """EngineError unless the library of the target and the GPUs are here; says how to mend it. Loads neither."""
    target, ranks, heads = manifest.target, len(devices.group), manifest.model.backbone.kv_heads
    if ranks > 1 and target in TENSORRT_MODULES:
        raise EngineError(f"target {target}: expected one device for the performer, got {ranks}; torch-cuda takes more")
    if heads % ranks:
        fits = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        raise EngineError(
            f"device: expected {fits} for the performer, as its {heads} KV heads are dealt out, got {ranks}"
        )
    module = TENSORRT_MODULES.get(target, "torch")
    wanted = [module] if target in TENSORRT_MODULES else [module, "triton"]
    wanted += ["cuda.bindings.runtime"] if devices.gpus else []
    for name in wanted:
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:  # of a parent package
            found = None
        if found is None:
            extra = {"tensorrt_rtx": "gpu,rtx"}.get(name, "build,gpu" if name == "torch" else "gpu")
            hint = "NVIDIA's container has it" if name == "tensorrt" else f"pip install 'wan-streamer-triton[{extra}]'"
            raise EngineError(f"target {target}: expected the package {name.partition('.')[0]}, got none; {hint}")
    if not devices.gpus:
        if target in TENSORRT_MODULES:
            raise EngineError(f"target {target}: expected a GPU, got device cpu; only torch-cuda can be checked there")
        return
    if target == "torch-cuda":
        header = Path(sysconfig.get_paths()["include"]) / "Python.h"
        if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")) or not header.is_file():
            raise EngineError(
                f"target {target}: expected a C compiler and {header}, with which OpenAI Triton builds its launchers; "
                "apt-get install gcc python3-dev"
            )
    gpus = installed_gpus()
    if len(gpus) <= devices.gpus[-1]:
        found = f"only {', '.join(gpus)}" if gpus else "none (nvidia-smi shows what the driver sees)"
        raise EngineError(
            f"target {target}: expected NVIDIA GPU {devices.gpus[-1]}, found {found}; in a container: --gpus all; "
            "for a CPU build with: make engine TARGET=onnxruntime"
        )


def _wait_for(name: str, config: ModelConfig, memory: Memory, ranks: int) -> DevicePool:
    """A pool of the performer's, once its stage has made it; its last PoolError after WAIT_SECONDS."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return DevicePool.open(name, config, memory, ranks)
        except PoolError:  # not there yet, or not complete
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
