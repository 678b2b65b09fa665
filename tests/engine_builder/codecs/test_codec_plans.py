"""TensorRT-RTX takes perceive and render with every codec family, ahead of time for two generations of GPUs.

Small pictures and few channels; of the Wan VAE, whose export takes a minute, one block of each size instead of two.
"""

from dataclasses import replace

import pytest
from families import audio_config, video_config

from engine_builder.checkpoint import random_model
from engine_builder.config import BackboneConfig, ModelConfig
from engine_builder.export import export_step
from engine_builder.model.codecs import wan21
from engine_builder.model.steps import step_specs
from engine_builder.targets.tensorrt import Limits, PlanBuilder

pytestmark = pytest.mark.engine
BACKBONE = BackboneConfig(hidden_size=64, layers=1, heads=2, kv_heads=1, head_dim=32, intermediate_size=64)
LIMITS = Limits(max_batch=2, max_pages=8, pool_pages=32, page_tokens=16)
CAPABILITIES = ("8.9", "12.0")


@pytest.mark.parametrize("step", ["perceive", "render"])
@pytest.mark.parametrize("family", ["taehv", "wan21"])
def test_plans_build(family, step, monkeypatch, tmp_path):
    """With mimi-vae on the other side, perceiving through the codecs themselves."""
    monkeypatch.setattr(wan21, "RESIDUALS", 1)
    config = ModelConfig(
        audio=replace(audio_config(), perceive="codec"),
        video=replace(video_config(family), perceive="codec"),
        backbone=BACKBONE,
    )
    spec = step_specs(random_model(config, 0))[step]
    graph = export_step(spec, tmp_path / "step.onnx")
    for capability in CAPABILITIES:
        plan = tmp_path / f"{capability}.plan"
        PlanBuilder("tensorrt-rtx", config, LIMITS, capability).build_step(step, graph, plan, spec.dynamic)
        assert plan.stat().st_size > 100_000
