"""TensorRT-RTX plans of all four steps of every preset, at reduced depth.

Token counts, heads, widths of the stream and pictures are the preset's; one layer deep and with a narrow feed-forward,
which is one more matrix product of a known kind. The tiny preset is built in test_build.py; the renders of the others,
which take half a minute each, on small pictures in codecs/test_codec_engines.py every day.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from functools import cache
from pathlib import Path

import onnx
import pytest
import torch

from engine_builder.config import ModelConfig
from engine_builder.export import export_step
from engine_builder.manifest import STEPS
from engine_builder.model.duplex import DuplexModel
from engine_builder.model.steps import StepSpec
from engine_builder.presets import PRESETS
from engine_builder.targets.precision import set_precision
from engine_builder.targets.tensorrt import Limits, PlanBuilder, plan_specs

pytestmark = pytest.mark.engine
LIMITS = Limits(max_batch=2, max_pages=8, pool_pages=32, page_tokens=16, max_prompt=32)
NAMES = sorted(PRESETS.keys() - {"tiny"})
# Between them they have all picture sizes, both kinds of head, the narrowest and the widest stream. The others take
# minutes to say the same: `pytest -m slow`.
EVERY_DAY = [(name, step) for name in ("v0.1-0.6b", "v0.2-8b") for step in ("perceive", "think", "perform")]
CASES = [(name, step) for name in NAMES for step in STEPS]


def shallow(config: ModelConfig) -> ModelConfig:
    """One layer, a narrow feed-forward and a small vocabulary."""
    backbone = replace(config.backbone, layers=1, intermediate_size=256)
    language = replace(config.language, vocab_size=512, pad_id=0, query_id=1, eou_id=2, first_state_id=3)
    return replace(config, backbone=backbone, language=language)


@cache
def specs_of(preset: str) -> dict[str, StepSpec]:
    """Constant weights: a build looks at shapes and types, and drawing 100 million numbers takes longer than it."""
    with torch.device("meta"):
        model = set_precision(DuplexModel(shallow(PRESETS[preset])).eval(), "bfloat16")
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(0.01)
    return plan_specs(model)


@dataclass(frozen=True)
class Part:
    """What a step's graph depends on, of a shallow config."""

    step: str
    sizes: tuple[object, ...]

    @classmethod
    def of(cls, step: str, config: ModelConfig) -> Part:
        a, v, b = config.audio, config.video, config.backbone
        if step == "render":
            return cls(step, (*astuple(a), *astuple(v)))
        streams = (*astuple(replace(a, codec="")), *astuple(replace(v, codec="")))  # presets perceive without them
        return cls(step, (*streams, b.hidden_size) if step == "perceive" else (*streams, *astuple(b)))


@pytest.fixture(scope="module")
def built() -> Iterator[dict[Part, int]]:
    """Bytes of the plans that were built; presets with one graph share its plan. The exporter makes objects by the
    million, through which the garbage collector would go over and over."""
    gc.disable()
    yield {}
    gc.enable()
    specs_of.cache_clear()


@pytest.mark.parametrize(
    ("preset", "step"), [c if c in EVERY_DAY else pytest.param(*c, marks=pytest.mark.slow) for c in CASES]
)
def test_plans_build_in_bfloat16(preset: str, step: str, built: dict[Part, int]) -> None:
    config = shallow(PRESETS[preset])
    part = Part.of(step, config)
    if part not in built:
        spec = specs_of(preset)[step]
        with tempfile.TemporaryDirectory() as scratch:
            plan = Path(scratch) / "step.plan"
            graph = export_step(spec, Path(scratch) / "graph.onnx")
            check_inputs(graph, spec, config)
            PlanBuilder("tensorrt-rtx", config, LIMITS, "8.9").build_step(step, graph, plan, spec.dynamic)
            built[part] = plan.stat().st_size
    assert built[part] > 100_000


def check_inputs(graph: Path, spec: StepSpec, config: ModelConfig) -> None:
    """The sizes of the preset and the symbols of the profiles are in the graph."""
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in onnx.load(graph, load_external_data=False).graph.input
    }
    assert list(shapes) == list(spec.inputs)
    a, v, b = config.audio, config.video, config.backbone
    expected = {
        "pcm": ["batch", a.unit_samples],
        "frames": ["batch", 4, v.height, v.width, 3],
        "x_video": ["batch", v.tokens, v.latent_dim],
        "k_pool": [1, "pool_pages", "page_tokens", b.kv_heads, b.head_dim],
        "block_mask": ["batch", "tokens", "tokens"],
    }
    for name in shapes.keys() & expected.keys():
        assert shapes[name] == expected[name]


def test_presets_share_what_does_not_depend_on_the_backbone() -> None:
    parts = {Part.of(step, shallow(PRESETS[name])) for name in NAMES for step in STEPS}
    assert {step: sum(part.step == step for part in parts) for step in STEPS} == {
        "perceive": 4,
        "think": 4,
        "perform": 4,
        "render": 4,
    }
