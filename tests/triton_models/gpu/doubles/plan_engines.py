"""The TensorRT executor over the stand-ins: a plan of any step of a model."""

from __future__ import annotations

import fake_tensorrt as trt
import torch

from engine_builder.manifest import EngineEntry, TensorSpec
from engine_builder.model.duplex import DuplexModel
from engine_builder.model.steps import StepSpec
from engine_builder.targets import tensorrt as builder
from triton_models.gpu.cuda.buckets import Limits
from triton_models.gpu.cuda.cuda_runtime import CudaRuntime
from triton_models.gpu.tensorrt.engine import PerformPlan, PlanEngine
from triton_models.gpu.tensorrt.runtime_cache import CacheFile


def plan_engine(
    model: DuplexModel,
    step: str,
    cuda: CudaRuntime,
    limits: Limits,
    pool: tuple[int, int],
    cache: CacheFile | None = None,
) -> PlanEngine:
    """`pool`: its pages, and tokens of each."""
    spec = builder.plan_specs(model, batch=2, pages=3, page_tokens=pool[1])[step]
    bounds = builder.Limits(limits.max_batch, limits.max_pages, *pool, max_prompt=64)
    trt.STEPS[step.encode()] = (spec, builder.profiles(model.config, step, bounds))
    kind = PerformPlan if step == "perform" else PlanEngine
    return kind(step, step.encode(), entry_of(spec), limits, trt, cuda, cache)


def entry_of(spec: StepSpec) -> EngineEntry:
    """What the manifest says of a step: names, types and symbolic shapes."""

    def kind(tensor: torch.Tensor) -> str:
        return str(tensor.dtype).removeprefix("torch.")

    inputs = tuple(
        TensorSpec(n, kind(t), tuple(spec.dynamic.get(n, {}).get(i, size) for i, size in enumerate(t.shape)))
        for n, t in spec.inputs.items()
    )
    with torch.no_grad():
        results = spec.module(*spec.inputs.values())
    outputs = tuple(TensorSpec(n, kind(t), tuple(t.shape)) for n, t in zip(spec.outputs, results, strict=True))
    return EngineEntry(f"{spec.name}.plan", "", "", inputs, outputs)
