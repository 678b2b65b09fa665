"""Checkpoint -> step graphs -> engines -> manifest, for any target."""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx

from .checkpoint import TOKENIZER, load_checkpoint, read_defaults, read_seed, read_weights_note
from .config import RECENT_UNITS, SINK_UNITS, ModelConfig
from .export import export_step
from .layout import window_pages
from .manifest import (
    ENCODE,
    GPU_TARGETS,
    MANIFEST,
    STEPS,
    TARGETS,
    EngineEntry,
    Manifest,
    StateFile,
    TensorSpec,
    sha256,
)
from .model.duplex import DuplexModel
from .model.steps import start_states, state_sizes, step_specs
from .targets import onnxruntime as ort_target
from .targets import tensorrt as trt_target
from .targets import torch_cuda as torch_target
from .targets.precision import set_precision
from .tokenizer import write_tiny_tokenizer

PROMPT_TOKENS = 1024  # that fit beside the server's default retention
MIN_PAGES, MIN_POOL_PAGES = 256, 2048
Progress = Callable[[str, str], None]  # (step, what is being done)


class StepBuilder(Protocol):
    """Turns one step graph into one engine file."""

    def build_step(self, step: str, graph: Path, output: Path, axes: dict[str, dict[int, str]]) -> None: ...

    def libraries(self) -> dict[str, str]: ...


@dataclass(frozen=True)
class BuildOptions:
    """What to build for. The limits become optimisation profiles (TensorRT) and admission bounds (all targets)."""

    target: str = "onnxruntime"
    compute_capability: str | None = None
    precision: str | None = None  # of the matrices; None: bfloat16 on GPUs, the only ones that gain from it
    timing_cache: Path | None = None  # TensorRT keeps there which kernels were fastest; a second build is quicker
    max_batch: int = 8
    max_pages: int | None = None  # None: what a session with the server's default retention needs
    pool_pages: int | None = None  # None: on GPUs that of a whole batch
    page_tokens: int = 16

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ValueError(f"target: expected one of {', '.join(TARGETS)}, got {self.target!r}")
        for name in ("max_batch", "max_pages", "pool_pages", "page_tokens"):
            size = getattr(self, name)
            if size is not None and not 0 < size < 2**31:
                raise ValueError(f"--{name.replace('_', '-')}: expected a number from 1 to 2^31 - 1, got {size}")

    def resolved(self, config: ModelConfig) -> BuildOptions:
        """The same without open limits."""
        unit = config.unit_positions  # all text and slots count as used
        kept = window_pages(PROMPT_TOKENS + SINK_UNITS * unit, RECENT_UNITS * unit, self.page_tokens)
        pages = self.max_pages or max(MIN_PAGES, kept)
        whole = self.max_batch * pages if self.target in GPU_TARGETS else 0
        return replace(self, max_pages=pages, pool_pages=self.pool_pages or max(MIN_POOL_PAGES, whole + 1))


def build_engines(
    checkpoint: Path, output: Path, options: BuildOptions, progress: Progress = lambda step, what: None
) -> Manifest:
    """Builds all steps into `output`, replacing it only when everything succeeded.

    Raises `CheckpointError`, `EngineBuildError` or `ValueError` with the reason; a failed build leaves the old
    directory as it was.
    """
    if output.exists() and not (output / MANIFEST).exists() and any(output.iterdir()):
        raise ValueError(f"{output}: expected an empty or an engine directory, found other files; choose another")
    seed = read_seed(checkpoint) if options.target == "torch-cuda" else None
    model = load_checkpoint(checkpoint, seeded_backbone=seed is None)
    asked, options = options, options.resolved(model.config)
    precision = options.precision or ("bfloat16" if options.target in GPU_TARGETS else "float32")
    builder = _builder(options, model.config, precision, seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as scratch:
        work = Path(scratch) / "engines"
        work.mkdir()
        start = _write_start(model, work)
        if isinstance(builder, torch_target.WeightsBuilder):
            engines = _pack(builder, model, work, progress)
        else:
            engines = _compile(builder, set_precision(model, precision), options.target, work, progress)
        tokenizer = work / TOKENIZER
        if (checkpoint / TOKENIZER).exists():
            shutil.copyfile(checkpoint / TOKENIZER, tokenizer)
        else:
            write_tiny_tokenizer(tokenizer, model.config.language)
        limits = {name: getattr(options, name) for name in ("max_batch", "max_pages", "pool_pages", "page_tokens")}
        manifest = Manifest(
            model=model.config,
            target=options.target,
            precision=precision,
            compute_capability=options.compute_capability,
            weights=read_weights_note(checkpoint),
            defaults=read_defaults(checkpoint),
            libraries={**builder.libraries(), "torch": importlib.metadata.version("torch"), "onnx": onnx.__version__},
            limits=limits,
            state=state_sizes(model.config),
            engines=engines,
            start=start,
            tokenizer={"file": TOKENIZER, "sha256": sha256(tokenizer)},
            rebuild=_rebuild_command(checkpoint, output, asked),
        )
        manifest.save(work)
        _replace(work, output)
    return manifest


def verify_engines(directory: Path, target: str | None = None, trusted_key: Path | None = None) -> Manifest:
    """Checks the manifest, every hash and, with a key, the signature; raises `ManifestError`."""
    manifest = Manifest.load(directory)
    manifest.verify(directory, target=target, trusted_key=trusted_key)
    return manifest


def _builder(
    options: BuildOptions, config: ModelConfig, precision: str, seed: int | None
) -> StepBuilder | torch_target.WeightsBuilder:
    if options.compute_capability is not None and options.target in ("onnxruntime", "torch-cuda"):
        raise ValueError(f"--compute-capability: {options.target} engines are not tied to one; leave it out")
    if options.timing_cache is not None and options.target != "tensorrt":
        raise ValueError(f"--timing-cache: expected --target tensorrt, got {options.target}; leave it out")
    if precision == "fp8" and options.target != "torch-cuda":
        raise ValueError(f"--precision: fp8 is for torch-cuda engines, got target {options.target}")
    if options.target == "torch-cuda":
        return torch_target.WeightsBuilder(config, precision, seed)
    if options.target == "onnxruntime":
        if precision != "float32":
            raise ValueError(f"--precision: onnxruntime engines are float32, got {precision!r}; it is for GPU targets")
        return ort_target.GraphBuilder()
    pages, pool = options.max_pages or MIN_PAGES, options.pool_pages or MIN_POOL_PAGES
    limits = trt_target.Limits(options.max_batch, pages, pool, options.page_tokens)
    return trt_target.PlanBuilder(options.target, config, limits, options.compute_capability, options.timing_cache)


def _compile(
    builder: StepBuilder, model: DuplexModel, target: str, work: Path, progress: Progress
) -> dict[str, EngineEntry]:
    """Exports every step and builds an engine from its graph; the graphs lie beside `work` and are not kept."""
    engines = {}
    specs = step_specs(model) if target == "onnxruntime" else trt_target.plan_specs(model)
    for step, spec in specs.items():
        progress(step, "export")
        graph = export_step(spec, work.parent / f"{step}.onnx")
        progress(step, f"build for {target}")
        suffix = ort_target.FILE_SUFFIX if target == "onnxruntime" else trt_target.FILE_SUFFIX
        file = work / f"{step}{suffix}"
        builder.build_step(step, graph, file, spec.dynamic)
        inputs, outputs = _tensors(graph)
        engines[step] = EngineEntry(file.name, sha256(file), sha256(graph), inputs, outputs)
    return engines


def _pack(
    builder: torch_target.WeightsBuilder, model: DuplexModel, work: Path, progress: Progress
) -> dict[str, EngineEntry]:
    """Writes packed weights; steps that share a file share its hash."""
    specs = torch_target.tensor_specs(model.config, builder.dtype)
    engines = {}
    for step in (*STEPS, ENCODE):
        progress(step, "pack weights")
        file, layout = builder.build_step(step, model, work)
        inputs, outputs = specs[step]
        engines[step] = EngineEntry(file.name, sha256(file), layout, inputs, outputs)
    return engines


def _write_start(model: DuplexModel, work: Path) -> dict[str, StateFile]:
    """Files of the states that sessions begin with, where they are not zeros."""
    written = {}
    for step, state in start_states(model).items():
        path = work / f"{step}.start.npy"
        np.save(path, state.numpy(), allow_pickle=False)
        written[step] = StateFile(path.name, sha256(path))
    return written


def _tensors(graph: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    proto = onnx.load(graph, load_external_data=False).graph

    def spec(value: onnx.ValueInfoProto) -> TensorSpec:
        tensor = value.type.tensor_type
        dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()  # numpy has no bfloat16
        dtype = {"float": "float32"}.get(dtype, dtype)
        return TensorSpec(value.name, dtype, tuple(d.dim_param or d.dim_value for d in tensor.shape.dim))

    return tuple(map(spec, proto.input)), tuple(map(spec, proto.output))


def _rebuild_command(checkpoint: Path, output: Path, options: BuildOptions) -> str:
    words = ["python", "-m", "engine_builder", "build", str(checkpoint), str(output), "--target", options.target]
    for option in fields(options)[1:]:
        if getattr(options, option.name) != option.default:
            words += [f"--{option.name.replace('_', '-')}", str(getattr(options, option.name))]
    return shlex.join(words)


def _replace(work: Path, output: Path) -> None:
    """Puts the finished directory in place of the old one."""
    old = work.parent / "old"
    if output.exists():
        os.rename(output, old)
    os.rename(work, output)
