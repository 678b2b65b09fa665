"""The solver of rank 0: whatever its bank is told, the other ranks are told as well."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

import numpy as np

from triton_models.runtime.engines.engine import EngineError
from triton_models.runtime.messages import Float32, HistoryView

from ..solver_bank import SolverBank
from .commands import Drop, Put, Rehearse, Tick
from .ranks import Ranks


class GroupSolver:
    """A `runtime.engines.solver.Solver`. All ranks hold all latents of a unit, so a result is taken here alone."""

    def __init__(self, bank: SolverBank, ranks: Ranks) -> None:
        self._bank, self._ranks = bank, ranks

    @property
    def engine_ns(self) -> int:
        return self._bank.engine_ns

    def put(self, x_video: Float32, x_audio: Float32, cos: Float32, sin: Float32, view: HistoryView) -> int:
        slot = self._bank.put(x_video, x_audio, cos, sin, view)  # a refusal comes before the others hear of it
        arrays = x_video, x_audio, cos, sin, view.page_ids, view.ranges
        self._ranks.tell(Put(slot, *(np.ascontiguousarray(array).tobytes() for array in arrays)))
        return slot

    def tick(self, slots: Sequence[int], taus: Sequence[float], steps: Sequence[float]) -> Iterable[bool]:
        self._ranks.tell(Tick(list(slots), list(taus), list(steps)))
        try:
            return self._bank.tick(slots, taus, steps)
        except Exception as error:
            self._ranks.fail(f"a solver step of the performer group failed: {error}")
            raise

    def take(self, slot: int) -> tuple[Float32, Float32]:
        return self._bank.take(slot)

    def drop(self, slot: int) -> None:
        self._bank.drop(slot)
        with contextlib.suppress(EngineError):  # the next put or tick raises it, and `Ranks.fault` tells the launcher
            self._ranks.tell(Drop(slot))

    def rehearse(self) -> None:
        self._ranks.tell(Rehearse())
        self._bank.rehearse()
