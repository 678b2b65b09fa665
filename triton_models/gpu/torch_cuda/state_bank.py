"""Codec states of all sessions of a step, on the device from their start to their end; a call names them by number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine_builder.model.codecs.codec import Kept
from engine_builder.model.steps import PerceiveStep, RenderStep
from triton_models.runtime.engines.engine import EngineError

from ..cuda.buckets import Limits
from ..cuda.staging import Slot
from .captured import CapturedCall, Lane

SPARE = 0  # works for the rows that only fill a bucket


class StateBank:
    """`runtime.engines.states.States` of perceive or render. `shapes`: inputs in order, without batch and state."""

    def __init__(
        self,
        module: PerceiveStep | RenderStep,
        shapes: Mapping[str, tuple[tuple[int, ...], str]],
        outputs: Sequence[str],
        limits: Limits,
        lane: Lane,
        sessions: int,
        start: np.ndarray,
    ) -> None:
        self._module, self._shapes, self._outputs = module, dict(shapes), tuple(outputs)
        self._limits, self._lane = limits, lane
        self._calls: dict[int, CapturedCall] = {}
        self._free = list(range(sessions, SPARE, -1))
        with lane.current():
            self._start = torch.from_numpy(start.copy()).to(lane.device)
            self._slab = torch.zeros(1 + sessions, start.size, device=lane.device)

    def open(self) -> int:
        if not self._free:
            raise EngineError(f"codec states: all {len(self._slab) - 1} are taken")
        state = self._free.pop()
        with self._lane.current():
            self._slab[state].copy_(self._start)
        return state

    def close(self, state: int) -> None:
        """Nothing of it is left for its next owner."""
        with self._lane.current():
            self._slab[state].zero_()
        self._free.append(state)

    def after(self, state: int, out: Any) -> int:
        return state

    def run(self, inputs: Mapping[str, np.ndarray], states: Sequence[int]) -> dict[str, np.ndarray]:
        """`state_out` [B] is a number that is finite if the new state is."""
        call = self.call(self._limits.rows(len(states)))
        call.launch({**inputs, "state": np.array(states, dtype=np.int64)}, len(states))
        return call.wait(len(states))

    def rehearse(self) -> None:
        """Captures a graph for every number of rows."""
        for rows in self._limits.all_rows():
            self.call(rows)

    def call(self, rows: int) -> CapturedCall:
        """The captured call of a bucket of rows."""
        if rows not in self._calls:
            slots = {name: Slot((rows, *shape), dtype) for name, (shape, dtype) in self._shapes.items()}
            self._calls[rows] = CapturedCall(self._body, {**slots, "state": Slot((rows,), "int64")}, self._lane)
        return self._calls[rows]

    def _body(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        first, second, rows = inputs.values()
        return dict(zip(self._outputs, self._module.over(first, second, Kept(self._slab, rows)), strict=True))
