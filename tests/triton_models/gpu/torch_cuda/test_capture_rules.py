"""What a CUDA graph may record: every body that is captured on a GPU runs here under rules that a CPU can check.

While a stream is captured nothing may wait for the device, nothing may come from pageable memory of the host, and all
tensors are of one device. A number that Python reads off a tensor, a shape that depends on data, or a tensor made from
Python numbers would break one of these. And nothing that is allocated meanwhile may outlive the body: it lies in the
memory that the next graph of the lane uses again.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from families import audio_config, video_config
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine_builder.checkpoint import random_model
from engine_builder.config import FRAMES_PER_UNIT
from engine_builder.presets import PRESETS, preset
from engine_builder.targets.torch_cuda import pack_backbone
from triton_models.gpu.cuda.buckets import Limits
from triton_models.gpu.torch_cuda import captured, codecs
from triton_models.gpu.torch_cuda.backbone import Backbone
from triton_models.gpu.torch_cuda.captured import CapturedCall, Lane
from triton_models.gpu.torch_cuda.engine import perceive_engine, render_engine
from triton_models.gpu.torch_cuda.solver_bank import SolverBank
from triton_models.gpu.torch_cuda.steps import PerformEngine, ThinkEngine, device_array
from triton_models.gpu.torch_cuda.weights import BackboneWeights
from triton_models.runtime.engines.inputs import step_inputs
from triton_models.runtime.messages import HistoryView

pytestmark = pytest.mark.unit
CPU, LIMITS, PAGE_TOKENS = torch.device("cpu"), Limits(2, 4), 8
# Operators that wait for the device, or whose result has a size that only the device knows, or that copy host data.
FORBIDDEN = {
    "_local_scalar_dense",
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "lift_fresh",
    "repeat_interleave",
}


class Rules(TorchDispatchMode):
    """Counts operators and raises for those that a capture forbids. `made`: memory that was allocated meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = 0
        self.made: list[StorageWeakRef] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators += 1
        name = func.overloadpacket.__name__
        if name in FORBIDDEN:
            raise AssertionError(f"{func}: not while a stream is captured")
        result = func(*args, **(kwargs or {}))
        given = {StorageWeakRef(t.untyped_storage()).cdata for t in tensors((args, kwargs))}
        for tensor in tensors(result):
            place = StorageWeakRef(tensor.untyped_storage())
            if place.cdata not in given:
                self.made.append(place)
        return result


def tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


@contextmanager
def rules(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rules]:
    """Applies the rules to what captured calls run, and to nothing around them."""
    mode, body = Rules(), CapturedCall._body

    def guarded(call: CapturedCall) -> None:
        warm = call._out is not None  # what is made once is made before the capture, in the first run
        mode.made.clear()
        with mode:
            body(call)
        if warm:
            gc.collect()
            left = [place for place in mode.made if not place.expired()]
            assert not left, f"{len(left)} allocations outlive the body that is captured"

    with monkeypatch.context() as patch:
        patch.setattr(captured.CapturedCall, "_body", guarded)
        yield mode


@pytest.fixture(scope="module", params=["float32", "fp8"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    tiny = preset("tiny")
    small = replace(tiny.backbone, hidden_size=32, layers=2, heads=4, kv_heads=2, head_dim=16, intermediate_size=48)
    model = random_model(replace(tiny, backbone=small), 0)
    packed = pack_backbone(model, request.param)
    return Backbone(BackboneWeights(model.config, {name: tensor.detach() for name, tensor in packed.items()}))


def pools(backbone: Backbone) -> dict[str, torch.Tensor]:
    b, dtype = backbone.config, backbone.weights.dtype
    shape = (b.layers, 6, PAGE_TOKENS, b.kv_heads, b.head_dim)
    return {name: torch.zeros(shape, dtype=dtype) for name in ("k_pool", "v_pool")}


def tables(rows: int) -> dict[str, np.ndarray]:
    return {
        "page_table": np.tile(np.array([1, 2]), (rows, 1)),
        "page_range": np.tile(np.array([[0, 8], [0, 3]]), (rows, 1, 1)),
    }


@pytest.mark.parametrize("name", ["think", "slot", "perform"])
def test_passes_over_pages(backbone: Backbone, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    config = backbone.weights.config
    kind = PerformEngine if name == "perform" else ThinkEngine
    with rules(monkeypatch) as seen:
        engine = kind(backbone, LIMITS, Lane(CPU, warm_up=1))
        own = {**step_inputs(config, {}, name, 2, 8), **tables(2)}
        engine.run({**own, **pools(backbone)})
        if name != "perform":
            held = pools(backbone)
            engine.run({**own, **{name: device_array(pool) for name, pool in held.items()}})
    assert seen.operators > 50


def test_the_solver_bank(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    config = backbone.weights.config
    with rules(monkeypatch) as seen:
        bank = SolverBank(backbone, LIMITS, Lane(CPU, warm_up=1), *pools(backbone).values(), slots=2)
        inputs = step_inputs(config, {}, "perform", 1, 8)
        own = [inputs[n][0] for n in ("x_video", "x_audio", "rope_cos", "rope_sin")]
        slot = bank.put(*own, HistoryView(np.array([1, 2]), np.array([[0, 8], [0, 3]])))
        bank.tick([slot], [1.0], [-0.5])
        bank.take(slot)
    assert seen.operators > 50


@pytest.mark.parametrize("name", PRESETS)
def test_encoders_and_codecs_are_of_one_device(name: str) -> None:
    """On the meta device a tensor that was left on the CPU is an error, and so is a number that is read."""
    config, meta = PRESETS[name], torch.device("meta")
    video, audio = config.video, config.audio
    perceive, render = codecs.perceive_module(config, meta), codecs.render_module(config, meta)
    with torch.no_grad():
        heard = torch.empty(2, audio.unit_samples, device=meta)
        frames = torch.empty(2, FRAMES_PER_UNIT, video.height, video.width, 3, dtype=torch.uint8, device=meta)
        out = perceive(heard, frames, torch.empty(2, perceive.state_size, device=meta))
        z = [torch.empty(2, part.tokens, part.latent_dim, device=meta) for part in (video, audio)]
        out += render(*z, torch.empty(2, render.state_size, device=meta))
    assert {tensor.device.type for tensor in out} == {"meta"}


@pytest.mark.parametrize("family", ["patch", "taehv", "wan21"])
def test_perceive_and_render(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With states that travel and with states that stay."""
    config = preset("tiny")
    if family != "patch":
        audio, video = replace(audio_config(), perceive="codec"), replace(video_config(family), perceive="codec")
        config = replace(config, audio=audio, video=video)
    perceive, render = codecs.perceive_module(config, CPU), codecs.render_module(config, CPU)
    states = {"perceive": perceive.state_size, "render": render.state_size}
    lane = Lane(CPU, warm_up=1)
    with rules(monkeypatch) as seen:
        for step, engine in (
            ("perceive", perceive_engine(config, perceive, LIMITS, lane)),
            ("render", render_engine(config, render, LIMITS, lane)),
        ):
            inputs = step_inputs(config, states, step, 1, 0)
            engine.run(inputs)
            bank = engine.bank(inputs.pop("state")[0], 2)
            bank.run(inputs, [bank.open()])
    assert seen.operators > 50


def test_the_rules_are_not_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    with rules(monkeypatch), pytest.raises(AssertionError, match="_local_scalar_dense"):
        CapturedCall(
            lambda t: {"x": t["x"] * float(t["x"].sum())}, {"x": captured.Slot((2,), "float32")}, Lane(CPU, warm_up=1)
        )


def test_what_outlives_a_body_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[torch.Tensor] = []

    def keeps(t: Any) -> dict[str, torch.Tensor]:
        kept.append(t["x"] * 2.0)
        return {"x": kept[-1]}

    with rules(monkeypatch):
        call = CapturedCall(keeps, {"x": captured.Slot((2,), "float32")}, Lane(CPU, warm_up=1))
        with pytest.raises(AssertionError, match="1 allocations outlive"):
            call.relaunch()
