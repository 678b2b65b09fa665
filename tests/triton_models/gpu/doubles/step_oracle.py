"""Inputs for a step, and what the step function that every target is exported from makes of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from engine_builder.model.steps import StepSpec

Arrays = dict[str, np.ndarray]
Draw = Callable[[tuple[int, ...]], np.ndarray]  # a shape -> an array of it


def draw_inputs(
    spec: StepSpec, rng: np.random.Generator, page_tokens: int, scale: float = 1.0, **special: Draw
) -> Arrays:
    """All inputs of a step in their order: `special` by name, the rest of the kind that the step takes; numbers are
    normal with deviation `scale`."""
    usual: dict[str, Draw] = {
        "page_range": lambda shape: np.sort(rng.integers(0, page_tokens + 1, shape), axis=-1),
        "frames": lambda shape: rng.integers(0, 256, shape, dtype=np.uint8),
        "ids": lambda shape: rng.integers(0, 64, shape),
    }
    draws = usual | special

    def normal(shape: tuple[int, ...]) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32) * scale

    return {name: draws.get(name, normal)(tuple(tensor.shape)) for name, tensor in spec.inputs.items()}


def reference(spec: StepSpec, inputs: Arrays) -> Arrays:
    """The outputs of the step function in PyTorch on the CPU; K and V are rounded to the type of its pools first."""
    with torch.no_grad():
        results = spec.module(*(torch.from_numpy(inputs[name]).to(like.dtype) for name, like in spec.inputs.items()))
    kinds = {torch.bfloat16: torch.float32}  # numpy has none
    return {name: t.to(kinds.get(t.dtype, t.dtype)).numpy() for name, t in zip(spec.outputs, results, strict=True)}
