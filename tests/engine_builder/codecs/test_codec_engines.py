"""Engines of models with published codecs: the four steps are built, start where they should, and equal the model.
TensorRT-RTX takes the same graphs, ahead of time for two generations of GPUs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from families import audio_config, media, video_config

from engine_builder.build import BuildOptions, build_engines
from engine_builder.checkpoint import random_model, save_checkpoint
from engine_builder.config import BackboneConfig, ModelConfig
from engine_builder.manifest import ManifestError
from engine_builder.model.codecs import wan21
from engine_builder.model.steps import PerceiveStep, RenderStep, step_specs
from engine_builder.targets.tensorrt import Limits, PlanBuilder
from triton_models.runtime.engines.engine import EngineError
from triton_models.service.load import load_engines

pytestmark = pytest.mark.engine

BACKBONE = BackboneConfig(hidden_size=64, layers=1, heads=2, kv_heads=1, head_dim=32, intermediate_size=64)
LIMITS = Limits(max_batch=2, max_pages=8, pool_pages=32, page_tokens=16)


def config(video: str, perceive: str = "codec") -> ModelConfig:
    return ModelConfig(
        name=f"{video}-{perceive}",
        audio=replace(audio_config(), perceive=perceive),
        video=replace(video_config(video), perceive=perceive),
        backbone=BACKBONE,
    )


@pytest.fixture(scope="module", params=["taehv", "shallow wan21", pytest.param("wan21", marks=pytest.mark.slow)])
def built(request, tmp_path_factory):
    """All of wan21 takes 90 s; one block at each size, instead of two and three, has every kind of layer."""
    work, family = tmp_path_factory.mktemp("codec"), request.param.removeprefix("shallow ")
    with pytest.MonkeyPatch.context() as patch:
        if family != request.param:
            patch.setattr(wan21, "RESIDUALS", 1)
        model = random_model(config(family), seed=0)
        save_checkpoint(model, work / "checkpoint")
        build_engines(work / "checkpoint", work / "engines", BuildOptions())
        yield model, work / "engines"


def units(model, step, count):
    c = model.config
    for k in range(count):
        if step == "perceive":
            yield {"pcm": media("mimi-vae", 1, 2, k), "frames": media("video", 1, 2, k)}
        else:
            shapes = {"z_video": (c.video.tokens, c.video.latent_dim), "z_audio": (c.audio.tokens, c.audio.latent_dim)}
            generator = torch.Generator().manual_seed(k)
            yield {name: torch.randn(2, *shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("step", ["perceive", "render"])
@torch.no_grad()
def test_engines_equal_the_model(built, step):
    model, directory = built
    module = {"perceive": PerceiveStep, "render": RenderStep}[step](model)
    engines = load_engines(directory, (step,))
    assert engines.state_sizes[step] == module.state_size == engines.start_state(step).size
    state = module.start().expand(2, -1)
    own = np.stack([engines.start_state(step)] * 2)
    np.testing.assert_array_equal(own, state.numpy())
    for inputs in units(model, step, 3):
        *expected, state = module(*inputs.values(), state)
        out = engines[step].run({**{name: t.numpy() for name, t in inputs.items()}, "state": own})
        own = out.pop("state_out")
        for got, wanted in zip(out.values(), expected, strict=True):
            # A pixel may be rounded to its neighbour.
            atol = 1.0 if got.dtype == np.uint8 else 1e-4
            np.testing.assert_allclose(got.astype(float), wanted.numpy().astype(float), atol=atol)
        np.testing.assert_allclose(own, state.numpy(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("step", ["perceive", "render"])
def test_plans_build(built, step, tmp_path):
    model, directory = built
    for capability in ("8.9", "12.0"):
        plan = tmp_path / f"{capability}.plan"
        builder = PlanBuilder("tensorrt-rtx", model.config, LIMITS, capability)
        builder.build_step(step, directory / f"{step}.onnx", plan, step_specs(model)[step].dynamic)
        assert plan.stat().st_size > 100_000


def test_an_altered_start_is_refused(built, tmp_path):
    _, directory = built
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    start = tmp_path / "render.start.npy"
    start.write_bytes(start.read_bytes() + b" ")
    with pytest.raises(ManifestError, match=r"start of render: render\.start\.npy has SHA-256"):
        load_engines(tmp_path, ("render",))
    load_engines(tmp_path, ("think",))  # has no start


def test_a_start_of_another_size_is_refused(built, tmp_path):
    from triton_models.runtime.engines.engine import read_start_states

    _, directory = built
    manifest = load_engines(directory, ("render",)).manifest
    np.save(tmp_path / "render.start.npy", np.zeros(3, dtype=np.float32))
    with pytest.raises(EngineError, match=r"expected \d+ float32, got float32 \(3,\)"):
        read_start_states(tmp_path, manifest, ("perceive", "render")[1:])
