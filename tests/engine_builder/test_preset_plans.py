"""TensorRT-RTX plans of every preset's step graphs: all widths and token counts of the preset, one layer deep.

The tiny preset is built whole, for two GPUs, in test_build.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine_builder.config import PRESETS, ModelConfig
from engine_builder.export import export_step
from engine_builder.model.duplex import DuplexModel
from engine_builder.model.steps import step_specs
from engine_builder.precision import set_precision
from engine_builder.targets.tensorrt import Limits, PlanBuilder

pytestmark = pytest.mark.engine
LIMITS = Limits(max_batch=2, max_pages=8, pool_pages=32, page_tokens=16, max_prompt=32)
# Encoders and codecs depend on the picture alone, which three presets share.
STEPS = dict.fromkeys(PRESETS.keys() - {"tiny"}, ("think", "perform"))
STEPS |= dict.fromkeys(("v0.1-0.6b", "v0.2-8b"), ("perceive", "think", "perform", "render"))


def shallow(config: ModelConfig) -> ModelConfig:
    """One layer and a small vocabulary, which is only one more matrix product of a known kind."""
    backbone = replace(config.backbone, layers=1)
    language = replace(config.language, vocab_size=2048, pad_id=0, query_id=1, eou_id=2, first_state_id=3)
    return replace(config, backbone=backbone, language=language)


def model_of(config: ModelConfig) -> DuplexModel:
    """Constant weights: a build looks at shapes and types, and drawing 300 million numbers takes longer than it."""
    with torch.device("meta"):
        model = set_precision(DuplexModel(config).eval(), "bfloat16")
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(0.01)
    return model


@pytest.mark.parametrize("preset", sorted(STEPS))
def test_plans_build_in_bfloat16(preset, tmp_path):
    config = shallow(PRESETS[preset])
    builder = PlanBuilder("tensorrt-rtx", config, LIMITS, "8.9")
    specs = step_specs(model_of(config))
    for step in STEPS[preset]:
        graph, plan = tmp_path / "graph.onnx", tmp_path / "step.plan"
        builder.build_step(step, export_step(specs[step], graph), plan, specs[step].dynamic)
        assert plan.stat().st_size > 100_000
        for file in (graph, plan):
            file.unlink()
