"""On an NVIDIA GPU: whole conversations through the runtime and through a real Triton, one graph launch a tick.

pytest -m gpu tests/triton_models/gpu/test_gpu_serving.py
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_server_torch as on_the_cpu
import torch

from engine_builder.build import BuildOptions, build_engines
from triton_models.launcher.installation import CONTAINER
from triton_models.runtime.budget.probe import SolverCall, scattered_view
from triton_models.runtime.engines.engine import PERFORMER_STEPS, THINKER_STEPS
from triton_models.service.load import load_engines
from triton_models.service.local import AgentUnit, LocalRuntime, UserUnit

pytestmark = pytest.mark.gpu
PAGE_TOKENS = 8


@pytest.fixture(scope="module")
def torch_engines(mini_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("engines") / "mini-torch"
    options = BuildOptions(
        target="torch-cuda", precision="float32", max_batch=4, max_pages=128, page_tokens=PAGE_TOKENS
    )
    build_engines(mini_checkpoint, directory, options)
    return directory


def converse(runtime: LocalRuntime, units: int = 6) -> list[AgentUnit]:
    audio, video, rng = runtime.config.audio, runtime.config.video, np.random.default_rng(0)
    heard = [
        UserUnit(
            rng.standard_normal(audio.unit_samples, dtype=np.float32) * np.float32(0.1),
            rng.integers(0, 256, (4, video.height, video.width, 3), dtype=np.uint8),
            "hi" if unit == 2 else "",
        )
        for unit in range(units)
    ]
    with runtime:
        return runtime.converse(heard, prompt="be kind", retention={"window": {"sink": 1, "recent": 2}})


def test_a_conversation_is_that_of_the_cpu_engines(mini_engines: Path, torch_engines: Path) -> None:
    expected = converse(LocalRuntime.load(mini_engines, page_tokens=PAGE_TOKENS))
    got = converse(LocalRuntime.load(torch_engines, device="0", page_tokens=PAGE_TOKENS))
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.slots == theirs.slots
        for name in ("z_video", "z_audio", "pcm"):
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=1e-3)


def test_after_the_rehearsal_every_tick_is_one_launch(torch_engines: Path) -> None:
    engines = load_engines(torch_engines, (*THINKER_STEPS, *PERFORMER_STEPS), device="0")
    with LocalRuntime(engines, pages=256, page_tokens=PAGE_TOKENS) as runtime:
        solver = engines.target.solver(engines["perform"], runtime.pool, 4)
        engines.target.rehearse(engines, runtime.pool, solver)
        call = SolverCall(engines.config, solver, scattered_view(runtime.pool, 100))
        call(3)
        with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as profile:
            for batch in (1, 2, 3):
                call(batch)
        names = [event.key for event in profile.key_averages() for _ in range(event.count)]
        assert names.count("cudaGraphLaunch") == 3
        assert not any("LaunchKernel" in name or "cuLaunch" in name or "Instantiate" in name for name in names)


@pytest.mark.skipif(
    not CONTAINER.is_dir() and importlib.util.find_spec("pytriton") is None,
    reason="expected a tritonserver, found none",
)
@pytest.mark.parametrize("device", ["0", "0,1"])
def test_the_conversation_through_triton(
    server: Any, start_server: Callable[..., Any], torch_engines: Path, device: str
) -> None:
    """CUDA IPC between the processes of thinker and performer; `0,1`: peer copies to the performer's own pool."""
    if torch.cuda.device_count() <= len(device) // 2:
        pytest.skip("expected two GPUs, found one")
    on_the_cpu.test_the_conversation_is_that_of_the_onnxruntime_engines(server, start_server, torch_engines, device)
