"""Targets `tensorrt` and `tensorrt-rtx`: one builder for both, given the Python module of either.

Both have the same network API (strongly typed networks, ONNX parser, optimisation profiles). TensorRT-RTX builds
ahead of time for a named compute capability without a GPU; TensorRT builds on and for the GPU at hand.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..manifest import TENSORRT_MODULES
from ..model.duplex import DuplexModel
from ..model.steps import StepSpec, step_specs

FILE_SUFFIX = ".plan"
INSTALL = {
    "tensorrt": "pip install tensorrt (11.x, NVIDIA's index) on a machine with an NVIDIA GPU, or use the container",
    "tensorrt-rtx": "pip install 'wan-streamer-triton[rtx]' (tensorrt-rtx-cu13)",
}


class EngineBuildError(RuntimeError):
    """A graph that TensorRT would not parse or build; carries the step and the library's own messages."""


def load_module(target: str) -> ModuleType:
    """Imports the library of a target, or says how to install it."""
    try:
        module = importlib.import_module(TENSORRT_MODULES[target])
        module.Builder  # noqa: B018 - the stub packages import but hold nothing
    except (ImportError, AttributeError, OSError) as error:
        raise EngineBuildError(
            f"target {target}: {TENSORRT_MODULES[target]} cannot be used ({error}); {INSTALL[target]}"
        ) from None
    return module


class SolverStep(nn.Module):
    """A `PerformStep` that takes the Euler step as well: whoever runs a plan has nothing else to compute with."""

    def __init__(self, perform: nn.Module) -> None:
        super().__init__()
        self.perform = perform

    def forward(
        self,
        x_video: Tensor,
        x_audio: Tensor,
        tau: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
        page_table: Tensor,
        page_range: Tensor,
        k_pool: Tensor,
        v_pool: Tensor,
        step: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        history = page_table, page_range, k_pool, v_pool
        video, audio = self.perform(x_video, x_audio, tau, rope_cos, rope_sin, *history)
        length = step.view(-1, 1, 1)
        return video, audio, x_video + length * video, x_audio + length * audio


def plan_specs(model: DuplexModel, batch: int = 2, pages: int = 3, page_tokens: int = 16) -> dict[str, StepSpec]:
    """The steps that plans are built of: `perform` also takes `step` [B] and gives x after an Euler step so long."""
    specs = step_specs(model, batch, pages, page_tokens)
    perform = specs["perform"]
    specs["perform"] = replace(
        perform,
        module=SolverStep(perform.module),
        inputs={**perform.inputs, "step": torch.zeros_like(perform.inputs["tau"])},
        outputs=(*perform.outputs, "x_video_out", "x_audio_out"),
        dynamic={**perform.dynamic, "step": {0: "batch"}},
    )
    return specs


@dataclass(frozen=True)
class Limits:
    """What the optimisation profiles must cover."""

    max_batch: int
    max_pages: int  # pages of history of one session
    pool_pages: int  # pages of the whole pool
    page_tokens: int
    max_prompt: int = 256


Symbols = dict[str, tuple[int, int, int]]  # (min, opt, max) of every dynamic axis


def profiles(config: ModelConfig, step: str, limits: Limits) -> list[Symbols]:
    """(min, opt, max) of every symbol, one dictionary a profile. `think` has three: block, slot and prompt pass.

    The kinds of pass get profiles of their own because each has fixed token counts, which lets the builder choose
    kernels for exactly that shape; parts that a pass lacks have zero tokens.
    """
    rows = (1, min(2, limits.max_batch), limits.max_batch)
    pool = (limits.pool_pages,) * 3
    paged = {
        "batch": rows,
        "pages": (1, max(1, limits.max_pages // 2), limits.max_pages),
        "pool_pages": pool,
        "page_tokens": (limits.page_tokens,) * 3,
    }
    if step in ("perceive", "render", "encode"):
        return [{"batch": rows}]
    if step == "perform":
        return [paged]

    def fixed(count: int) -> tuple[int, int, int]:
        return (count, count, count)

    none = {"video_tokens": fixed(0), "audio_tokens": fixed(0), "seen_tokens": fixed(0), "heard_tokens": fixed(0)}
    block = {
        "video_tokens": fixed(config.video.tokens),
        "audio_tokens": fixed(config.audio.tokens),
        "seen_tokens": fixed(config.video.perceive_tokens),
        "heard_tokens": fixed(config.audio.perceive_tokens),
        "id_tokens": fixed(config.language.text_tokens + 1),
        "tokens": fixed(config.block_tokens),
    }
    slot = {**none, "id_tokens": fixed(1), "tokens": fixed(1)}
    span = (1, limits.max_prompt // 2, limits.max_prompt)
    prompt = {**none, "id_tokens": span, "tokens": span, "batch": fixed(1)}
    return [{**paged, **block}, {**paged, **slot}, {**paged, **prompt}]


class PlanBuilder:
    """Builds plans with the API that TensorRT 11 and TensorRT-RTX share."""

    def __init__(
        self,
        target: str,
        config: ModelConfig,
        limits: Limits,
        compute_capability: str | None,
        timing_cache: Path | None = None,
    ) -> None:
        self.target, self.config, self.limits = target, config, limits
        self.timing_cache = timing_cache
        self.trt: Any = load_module(target)
        self._capability = None if compute_capability is None else self._known(compute_capability)
        self.logger = self.trt.Logger(self.trt.Logger.ERROR)

    def libraries(self) -> dict[str, str]:
        return {TENSORRT_MODULES[self.target]: self.trt.__version__}

    def build_step(self, step: str, graph: Path, output: Path, axes: dict[str, dict[int, str]]) -> None:
        """Parses `graph` and writes the serialized engine to `output`. `axes`: input -> axis -> symbol."""
        trt = self.trt
        builder = trt.Builder(self.logger)
        # TensorRT 11 has strongly typed networks only and dropped the flag's meaning; RTX still wants it said.
        flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if flag is None else 1 << int(flag))
        parser = trt.OnnxParser(network, self.logger)
        if not parser.parse_from_file(str(graph)):
            errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
            raise EngineBuildError(f"{step}: {self.target} cannot parse {graph.name}: {errors}")
        self._allow_decomposition(network)
        config = builder.create_builder_config()
        for symbols in profiles(self.config, step, self.limits):
            config.add_optimization_profile(self._profile(builder, network, axes, symbols))
        if self._capability is not None:
            config.num_compute_capabilities = 1
            config.set_compute_capability(self._capability, 0)
        self._load_timings(config)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise EngineBuildError(f"{step}: {self.target} built no engine from {graph.name}; see the messages above")
        with output.open("wb") as file:
            file.write(memoryview(plan))  # no second copy of what may be many gigabytes
        self._save_timings(config)

    def _load_timings(self, config: Any) -> None:
        """Attaches what earlier builds measured; TensorRT refuses a cache of another GPU or version: then a new one."""
        if self.timing_cache is None:
            return
        known = self.timing_cache.read_bytes() if self.timing_cache.exists() else b""
        if not config.set_timing_cache(config.create_timing_cache(known), False):
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def _save_timings(self, config: Any) -> None:
        if self.timing_cache is None:
            return
        self.timing_cache.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.timing_cache.with_suffix(".part")
        scratch.write_bytes(memoryview(config.get_timing_cache().serialize()))
        scratch.replace(self.timing_cache)

    def _allow_decomposition(self, network: Any) -> None:
        """Marks every attention as decomposable: where no fused kernel fits a shape (float32, or a slot pass of one
        query) the builder may compose it from matrix products instead of refusing the graph."""
        for i in range(network.num_layers):
            layer = network.get_layer(i)
            if layer.type == self.trt.LayerType.ATTENTION_INPUT:
                # The bindings hand out the base class; assigning the real one is their way to cast down.
                layer.__class__ = self.trt.IAttentionInputLayer
                layer.attention.decomposable = True

    def _profile(self, builder: Any, network: Any, axes: dict[str, dict[int, str]], symbols: Symbols) -> Any:
        profile = builder.create_optimization_profile()
        for i in range(network.num_inputs):
            tensor = network.get_input(i)
            named = axes.get(tensor.name, {})
            low, best, high = (
                tuple(symbols[named[axis]][which] if axis in named else size for axis, size in enumerate(tensor.shape))
                for which in range(3)
            )
            profile.set_shape(tensor.name, low, best, high)
        return profile

    def _known(self, capability: str) -> Any:
        """TensorRT-RTX compiles ahead of time for a named capability; TensorRT takes the GPU it runs on."""
        if self.target != "tensorrt-rtx":
            raise EngineBuildError(
                f"--compute-capability: TensorRT builds for the GPU at hand; only tensorrt-rtx takes it, got "
                f"{capability!r}"
            )
        names = sorted((n for n in dir(self.trt.ComputeCapability) if n.startswith("SM")), key=lambda n: int(n[2:]))
        known = {f"{n[2:-1]}.{n[-1]}": getattr(self.trt.ComputeCapability, n) for n in names}
        if capability not in known:
            raise EngineBuildError(
                f"--compute-capability: TensorRT-RTX {self.trt.__version__} builds for {', '.join(known)}, got "
                f"{capability!r}"
            )
        return known[capability]
