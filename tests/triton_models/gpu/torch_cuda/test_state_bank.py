"""Codec states that stay on the device: the same units as with states that travel, and nothing of a state is staged."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from families import audio_config, video_config

from engine_builder.checkpoint import random_model
from engine_builder.config import BackboneConfig, ModelConfig
from engine_builder.model.steps import PerceiveStep, RenderStep
from engine_builder.presets import preset
from triton_models.gpu.cuda.buckets import Limits
from triton_models.gpu.torch_cuda.captured import Lane
from triton_models.gpu.torch_cuda.engine import perceive_engine, render_engine
from triton_models.gpu.torch_cuda.state_bank import StateBank
from triton_models.runtime.engines.engine import EngineError
from triton_models.runtime.engines.inputs import step_inputs

pytestmark = pytest.mark.unit
BACKBONE = BackboneConfig(hidden_size=64, layers=1, heads=2, kv_heads=1, head_dim=32, intermediate_size=64)
SESSIONS, LIMITS = 3, Limits(max_batch=4, max_pages=4)
SOME = [("taehv", "perceive"), ("patch", "render")]


def config_of(family: str) -> ModelConfig:
    if family == "patch":
        return preset("tiny")
    audio, video = replace(audio_config(), perceive="codec"), replace(video_config(family), perceive="codec")
    return ModelConfig(audio=audio, video=video, backbone=BACKBONE)


@cache
def module_of(family: str, step: str) -> PerceiveStep | RenderStep:
    model = random_model(config_of(family), 0)
    return PerceiveStep(model) if step == "perceive" else RenderStep(model)


def bank_of(family: str, step: str) -> StateBank:
    module = module_of(family, step)
    make = perceive_engine if step == "perceive" else render_engine
    engine = make(module.model.config, module, LIMITS, Lane(torch.device("cpu"), warm_up=1))
    with torch.no_grad():
        return engine.bank(module.start().numpy(), SESSIONS)


def draw(module, step: str, batch: int, seed: int) -> dict[str, np.ndarray]:
    inputs = step_inputs(module.model.config, {step: 0}, step, batch, 0)
    del inputs["state"]
    return {name: np.roll(value, seed, axis=-2) for name, value in inputs.items()}


@torch.no_grad()
def expected(module, inputs: dict[str, np.ndarray], states: list[torch.Tensor]) -> list[torch.Tensor]:
    """What the step gives over states that travel; they move on in place."""
    *out, new = module(*(torch.from_numpy(value.copy()) for value in inputs.values()), torch.stack(states))
    for b in range(len(states)):
        states[b] = new[b]
    return out


@pytest.mark.parametrize("step", ["perceive", "render"])
@pytest.mark.parametrize("family", ["patch", "taehv", "wan21"])
def test_units_equal_those_of_states_that_travel(family, step):
    """Sessions of different age in calls of 1, 2 and 3 rows; a bucket of 4 has a row that is nobody's."""
    module, bank = module_of(family, step), bank_of(family, step)
    bank.rehearse()
    assert sorted(bank._calls) == LIMITS.all_rows()
    travelling, slots = {}, {}
    for number, present in enumerate(["a", "ab", "bac"]):
        for name in present:
            if name not in slots:
                slots[name], travelling[name] = bank.open(), module.start()
        inputs = draw(module, step, len(present), number)
        states = [travelling[name] for name in present]
        out = bank.run(inputs, [slots[name] for name in present])
        wanted = expected(module, inputs, states)
        travelling |= dict(zip(present, states, strict=True))
        witness = out.pop("state_out")
        assert witness.shape == (len(present),)
        assert np.isfinite(witness).all()
        for got, want in zip(out.values(), wanted, strict=True):
            tolerance = 1.0 if got.dtype == np.uint8 else 1e-4
            np.testing.assert_allclose(got.astype(float), want.numpy().astype(float), atol=tolerance, rtol=1e-4)
    staged = {name: slot.dtype for name, slot in bank.call(1)._in.host.layout.slots.items()}
    assert staged.pop("state") == "int64", "a number is staged, no state"
    assert set(staged) == set(inputs)


@pytest.mark.parametrize(("family", "step"), SOME)
def test_a_row_that_is_not_finite_shows_alone(family, step):
    module, bank = module_of(family, step), bank_of(family, step)
    slots = [bank.open(), bank.open()]
    inputs = draw(module, step, 2, 0)
    name = "pcm" if step == "perceive" else "z_audio"
    inputs[name][1] = np.nan
    assert np.isfinite(bank.run(inputs, slots)["state_out"]).tolist() == [True, False]


@pytest.mark.parametrize(("family", "step"), SOME)
def test_room_is_given_back_clean(family, step):
    module, bank = module_of(family, step), bank_of(family, step)
    slots = [bank.open() for _ in range(SESSIONS)]
    assert len(set(slots)) == SESSIONS
    with pytest.raises(EngineError, match="all 3 are taken"):
        bank.open()
    first = bank.run(draw(module, step, 1, 0), slots[:1])
    bank.close(slots[0])
    assert not bank._slab[slots[0]].any()
    again = bank.run(draw(module, step, 1, 0), [bank.open()])
    for name, value in first.items():
        np.testing.assert_array_equal(again[name], value)
