"""The device-resident solvers of both GPU executors against Euler steps of the model's own perform step."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import fake_cuda
import fake_tensorrt
import numpy as np
import pytest
import torch
from plan_engines import plan_engine

from engine_builder.checkpoint import random_model
from engine_builder.model.steps import PerformStep
from engine_builder.presets import preset
from engine_builder.targets.torch_cuda import pack_backbone
from triton_models.gpu.cuda.buckets import Limits
from triton_models.gpu.cuda.cuda_runtime import CudaRuntime
from triton_models.gpu.torch_cuda.backbone import Backbone
from triton_models.gpu.torch_cuda.captured import Lane
from triton_models.gpu.torch_cuda.solver_bank import SolverBank
from triton_models.gpu.torch_cuda.steps import device_array
from triton_models.gpu.torch_cuda.weights import BackboneWeights
from triton_models.runtime.engines.engine import EngineError
from triton_models.runtime.engines.solver import SolverFull
from triton_models.runtime.messages import HistoryView

pytestmark = pytest.mark.unit
PAGE_TOKENS, POOL_PAGES = 8, 9
LIMITS = Limits(4, 4)
HISTORIES = {
    0: HistoryView(np.array([3, 5]), np.array([[0, 8], [0, 3]])),
    2: HistoryView(np.array([0]), np.array([[0, 0]])),
    1: HistoryView(np.array([7, 1, 8]), np.array([[5, 8], [0, 8], [0, 1]])),
}


@pytest.fixture(scope="module")
def model():
    tiny = preset("tiny")
    backbone = replace(tiny.backbone, hidden_size=32, layers=2, heads=4, kv_heads=2, head_dim=16, intermediate_size=48)
    model = random_model(replace(tiny, backbone=backbone), 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "codec" not in name and parameter.dim() > 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def pools(model):
    b, generator = model.config.backbone, torch.Generator().manual_seed(2)
    shape = (b.layers, POOL_PAGES, PAGE_TOKENS, b.kv_heads, b.head_dim)
    k, v = (torch.randn(shape, generator=generator) for _ in range(2))
    k[:, 0] = v[:, 0] = 0
    return k, v


def torch_bank(model, pools):
    weights = BackboneWeights(model.config, {n: t.detach() for n, t in pack_backbone(model, "float32").items()})
    return SolverBank(Backbone(weights), LIMITS, Lane(torch.device("cpu"), warm_up=1), *pools, slots=3)


def plan_bank(model, pools):
    fake_tensorrt.CUDA[:] = [fake_cuda.FakeCuda()]
    cuda = CudaRuntime(api=fake_tensorrt.CUDA[0])
    engine = plan_engine(model, "perform", cuda, LIMITS, (POOL_PAGES, PAGE_TOKENS))
    return engine.bank(SimpleNamespace(k=device_array(pools[0]), v=device_array(pools[1])), 3)


@pytest.fixture(params=[torch_bank, plan_bank])
def bank(request, model, pools):
    return request.param(model, pools)


def noise(model, seed):
    c, rng = model.config, np.random.default_rng(seed)
    half = c.backbone.head_dim // 2
    shapes = (
        (c.video.tokens, c.video.latent_dim),
        (c.audio.tokens, c.audio.latent_dim),
        (c.latent_tokens, half),
        (c.latent_tokens, half),
    )
    return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]


def solve(model, pools, slot, schedule):
    """Euler steps of one unit, alone."""
    x_video, x_audio, cos, sin = (torch.from_numpy(a)[None] for a in noise(model, slot))
    view = HISTORIES[slot]
    table, span = torch.from_numpy(view.page_ids)[None], torch.from_numpy(view.ranges)[None]
    for tau, step in schedule:
        with torch.no_grad():
            video, audio = PerformStep(model)(x_video, x_audio, torch.tensor([tau]), cos, sin, table, span, *pools)
        x_video, x_audio = x_video + step * video, x_audio + step * audio
    return x_video[0].numpy(), x_audio[0].numpy()


def test_units_join_and_leave_at_every_step(bank, model, pools):
    for slot in range(3):
        assert bank.put(*noise(model, slot), HISTORIES[slot]) == slot
    ticks = [
        ([0], [1.0], [-0.5]),
        ([2, 0, 1], [1.0, 0.5, 1.0], [-1.0, -0.5, -0.25]),
        ([1], [0.75], [-0.75]),
    ]
    schedules = {0: [(1.0, -0.5), (0.5, -0.5)], 1: [(1.0, -0.25), (0.75, -0.75)], 2: [(1.0, -1.0)]}
    for tick in ticks:
        assert all(bank.tick(*tick))
    for slot, schedule in schedules.items():
        for got, want in zip(bank.take(slot), solve(model, pools, slot, schedule), strict=True):
            np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-4)


def test_a_slot_is_used_again(bank, model, pools):
    slot = bank.put(*noise(model, 0), HISTORIES[0])
    bank.tick([slot], [1.0], [-1.0])
    bank.drop(slot)
    assert bank.put(*noise(model, 1), HISTORIES[1]) == slot
    bank.tick([slot], [1.0], [-1.0])
    for got, want in zip(bank.take(slot), solve(model, pools, 1, [(1.0, -1.0)]), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-4)


def test_numbers_that_are_not_finite_stay_in_their_row(bank, model):
    for slot in (0, 1):
        bank.put(*noise(model, slot), HISTORIES[slot])
    seen = bank.tick([0, 1], [1.0, float("nan")], [-0.5, -0.5])
    assert list(seen) == ([True, False] if isinstance(bank, SolverBank) else [True, True])  # a plan does not look
    for slot in (0, 1):
        assert all(np.isfinite(x).all() == (slot == 0) for x in bank.take(slot))


def test_misfits_are_named(bank, model):
    with pytest.raises(EngineError, match="page_ids: expected pages 0 to 8"):
        bank.put(*noise(model, 0), HistoryView(np.array([9]), np.array([[0, 8]])))
    x_video, x_audio, cos, sin = noise(model, 0)
    with pytest.raises(EngineError, match="x_audio: expected float32"):
        bank.put(x_video, x_audio[:1], cos, sin, HISTORIES[0])
    for slot in range(3):  # what was refused took no slot
        assert bank.put(*noise(model, 0), HISTORIES[0]) == slot
    with pytest.raises(SolverFull, match="all 3 slots of the performer are taken"):
        bank.put(*noise(model, 0), HISTORIES[0])


def test_a_tick_of_a_plan_is_one_launch_and_uploads_two_numbers_a_row(model, pools):
    """Other slots than the last tick's are gathered first; a graph of every size is captured before."""
    bank = plan_bank(model, pools)
    bank.rehearse()
    api = fake_tensorrt.CUDA[0]
    assert api.calls.count("cudaGraphInstantiate") == 3  # batches of 1, 2 and 4 over one bucket of pages
    for slot in (0, 1):
        bank.put(*noise(model, slot), HISTORIES[slot])
    copies = []
    copy = api.cudaMemcpyAsync
    api.cudaMemcpyAsync = lambda to, source, size, kind, stream: (
        copies.append((to, source, size)) or copy(to, source, size, kind, stream)
    )
    for slots, gathered in (([0, 1], 2 * 6), ([0, 1], 0), ([1, 0], 2 * 2 + 2 * 6), ([1], 2 * 2 + 6)):
        copies.clear()
        bank.tick(slots, [1.0] * len(slots), [-0.1] * len(slots))
        assert len(copies) == gathered, slots  # outside of the graph
        assert not any(place in api.pinned for _, place, _ in copies), "and none of them from the host"
    assert api.calls.count("cudaGraphLaunch") == 4
    assert api.calls.count("cudaGraphInstantiate") == 3
    bank._engine.close()
    assert api.used() == 0
    assert not api.pinned
    assert not api.graphs
