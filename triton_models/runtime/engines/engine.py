"""Engines: `run(named arrays) -> named arrays`, and the record of those that a role has (`service.load` fills it)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from engine_builder.config import ModelConfig
from engine_builder.manifest import Manifest

from ..messages import SessionError
from ..metrics import Metrics
from .target import HostTarget, Target

Tensors = Mapping[str, np.ndarray]

THINKER_STEPS = ("perceive", "think", "encode")  # the last one where the directory has it
PERFORMER_STEPS = ("perform", "render")
TARGET = "onnxruntime"  # what runs here; GPU targets are loaded by `triton_models.gpu`

_log = logging.getLogger(__name__)


class EngineError(RuntimeError):
    """An engine that cannot be loaded or run; the message names what is missing and how to get it."""


def call_failed(step: str, error: Exception, metrics: Metrics) -> SessionError:
    """The error of every row of an engine call that raised `error`: logged and counted. Call it where it is handled."""
    _log.exception("the %s call failed", step)
    metrics.count(f"{step}.crashed")
    return SessionError("INTERNAL", f"{step}: the engine call failed ({error})")


class Engine(Protocol):
    """One compiled step. Stateless: a row of the outputs depends on the same row of the inputs (and on the pools)."""

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """All outputs by name, as arrays of their own, which the caller may change. The pools are read in place."""
        ...


class OnnxEngine:
    """A step run by ONNX Runtime on the CPU.

    Inputs are taken without a copy as long as they are C-contiguous, which the arrays of a `HostPool` are: a 192 MiB
    pool adds no measurable time to a call, and IO binding saves 3 microseconds, so `run` stays plain.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise EngineError(
                f"{path}: expected the onnxruntime package, which runs this target; "
                "install it with: pip install 'wan-streamer-triton[serve]'"
            ) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # A spinning pool takes the core that the next process needs: thinker, performer and server share a machine.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        # A memory pattern is kept for every shape ever seen, and history lengths are many: that would be a leak.
        options.enable_mem_pattern = False
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the package raises its own unrelated exception types
            raise EngineError(f"{path}: onnxruntime {onnxruntime.__version__} cannot load it: {error}") from None
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Raises EngineError for inputs that the graph does not take."""
        try:
            values: Any = self._session.run(self._outputs, dict(inputs))
        except Exception as error:
            raise EngineError(f"engine call failed: {error}") from error
        return dict(zip(self._outputs, values, strict=True))


@dataclass(frozen=True)
class EngineSet:
    """The engines of one role, with what the runtime must know about them."""

    config: ModelConfig
    engines: Mapping[str, Engine]
    state_sizes: Mapping[str, int]  # floats of per-session state of "perceive", "render" and, if there, "encode"
    max_batch: int  # rows that one call may have
    tokenizer_path: Path
    manifest: Manifest | None = None  # None: made by hand, as tests do
    max_pages: int | None = None  # pages of history that a row may have; None: any number
    target: Target = field(default_factory=HostTarget)
    start_states: Mapping[str, np.ndarray] = field(default_factory=dict)  # of steps whose sessions do not begin at zero

    @classmethod
    def of(
        cls, manifest: Manifest, engine_dir: Path, engines: Mapping[str, Engine], max_pages: int | None = None
    ) -> EngineSet:
        """`engines` by step, loaded from the verified files of `engine_dir`. Raises EngineError."""
        return cls(
            config=manifest.model,
            engines=engines,
            state_sizes=dict(manifest.state),
            max_batch=int(manifest.limits["max_batch"]),
            tokenizer_path=engine_dir / manifest.tokenizer["file"],
            manifest=manifest,
            max_pages=max_pages,
            start_states=read_start_states(engine_dir, manifest, tuple(engines)),
        )

    def __getitem__(self, step: str) -> Engine:
        try:
            return self.engines[step]
        except KeyError:
            raise EngineError(f"step {step}: expected one of {', '.join(self.engines)}, which were loaded") from None

    def start_state(self, step: str) -> np.ndarray:
        """State [S] of a session before its first unit; shared, so nobody writes into it."""
        state = self.start_states.get(step)
        return np.zeros(self.state_sizes[step], dtype=np.float32) if state is None else state


def read_start_states(engine_dir: Path, manifest: Manifest, steps: Sequence[str]) -> dict[str, np.ndarray]:
    """The states that sessions begin with, from verified files. Raises EngineError for one of another size."""
    states = {}
    for step in steps:
        if step in manifest.start:
            path = engine_dir / manifest.start[step].file
            state = np.load(path, allow_pickle=False)
            if state.shape != (manifest.state[step],) or state.dtype != np.float32:
                raise EngineError(f"{path}: expected {manifest.state[step]} float32, got {state.dtype} {state.shape}")
            states[step] = state
    return states
