"""Exports the four steps to ONNX (opset 23): dynamic batch, history length and pass length."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import warnings
from pathlib import Path

import onnx_ir as ir
import torch

from .model.steps import StepSpec

OPSET = 23  # RMSNormalization became an operator here; ONNX Runtime and both TensorRTs read it


def export_step(spec: StepSpec, path: Path) -> Path:
    """Writes the graph of one step; weights lie in the file, or beside it (`<file>.data`) when they pass 2 GiB."""
    dynamic = {
        name: dict.fromkeys(spec.dynamic[name], torch.export.Dim.DYNAMIC) if name in spec.dynamic else None
        for name in spec.inputs
    }
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            spec.module.eval(),
            tuple(spec.inputs.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(spec.inputs),
            output_names=list(spec.outputs),
            dynamic_shapes=tuple(dynamic.values()),
            verbose=False,
        )
    if program is None:
        raise RuntimeError(f"{spec.name}: the exporter returned no program")
    _name_axes(program.model.graph, spec)
    weights = sum(p.numel() * p.element_size() for p in spec.module.parameters())
    program.save(path, external_data=weights > 1_800_000_000)
    return path


def _name_axes(graph: ir.Graph, spec: StepSpec) -> None:
    """Writes our symbols over the exporter's (s10, s32, ...), so that a profile can be read off the graph."""
    renamed: dict[str | None, str] = {}
    for value in graph.inputs:
        for axis, symbol in spec.dynamic.get(value.name or "", {}).items():
            shape = _shape(value)
            dim = shape[axis]
            if isinstance(dim, ir.SymbolicDim):
                renamed[dim.value] = symbol
            shape[axis] = symbol
    for value in graph.outputs:
        shape = _shape(value)
        for axis, dim in enumerate(shape):
            if isinstance(dim, ir.SymbolicDim):
                shape[axis] = renamed.get(dim.value, dim.value)
    # Shapes inside the graph were inferred with the old symbols; both runtimes infer them again.
    ends = set(graph.outputs)
    for node in graph:
        for value in node.outputs:
            if value not in ends:
                value.shape = None
                value.type = None


def _shape(value: ir.Value) -> ir.Shape:
    if value.shape is None:
        raise RuntimeError(f"{value.name}: the exporter inferred no shape")
    return value.shape


@contextlib.contextmanager
def _quiet():
    """The exporter prints version notes that would bury our own progress; real errors are exceptions.

    It makes objects by the million, through which the garbage collector would go over and over: a quarter of its time.
    """
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    collecting = gc.isenabled()
    gc.disable()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
            if collecting:
                gc.enable()
