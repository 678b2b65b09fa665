"""The two causal codecs as steps over many sessions: `perceive` in the thinker, `render` in the performer.

Each row carries its session's codec state in and out, so sessions at different units share a call. A row that is not
finite fails alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..kv.tables import stack
from ..messages import SessionError
from ..metrics import Metrics
from ..validate import finite
from .engine import EngineSet, call_failed

Row = Mapping[str, np.ndarray]  # inputs of one row without the batch axis and without its state
Name = tuple[int, str]  # unit and session, for messages: made a text only where one is needed
Outcome = tuple[dict[str, np.ndarray], Any, float]  # outputs of one row, the new state, ms of its call


class CodecStep:
    """Runs one codec engine. `finite`: the outputs that must hold no NaN or Inf. `states`: those of its sessions."""

    def __init__(self, engines: EngineSet, step: str, finite: Sequence[str], metrics: Metrics, sessions: int) -> None:
        self.states = engines.target.states(engines[step], engines.start_state(step), sessions)
        self._max_batch = engines.max_batch
        self._step, self._finite, self._metrics = step, tuple(finite), metrics

    def run(self, rows: Sequence[Row], states: Sequence[Any], names: Sequence[Name]) -> list[Outcome | SessionError]:
        """Outputs of each row, or its error, in which `names` tells what failed."""
        results: list[Outcome | SessionError] = []
        for start in range(0, len(rows), self._max_batch):
            part = slice(start, start + self._max_batch)
            results += self._call(rows[part], states[part], names[part])
        return results

    def _call(self, batch: Sequence[Row], states: Sequence[Any], names: Sequence[Name]) -> list[Outcome | SessionError]:
        inputs = {name: stack([row[name] for row in batch]) for name in batch[0]}
        begin = time.perf_counter()
        try:
            out = self.states.run(inputs, states)
        except Exception as error:
            failure = call_failed(self._step, error, self._metrics)
            return [failure for _ in batch]
        ms = (time.perf_counter() - begin) * 1e3
        self._metrics.time(self._step, ms, len(batch))
        suspects = [output for output in self._finite if not finite(out[output])]  # somewhere in the batch
        if len(batch) == 1 and not suspects:
            row = {output: array[0] for output, array in out.items()}
            return [(row, self.states.after(states[0], row["state_out"]), ms)]
        results: list[Outcome | SessionError] = []
        for b, (unit, session) in enumerate(names):
            bad = [output for output in suspects if not finite(out[output][b])]
            if bad:
                what = f"{self._step} {unit} of session {session!r}: NaN or Inf in {', '.join(bad)}"
                results.append(SessionError("INTERNAL", what))
            else:  # a view would keep the whole batch alive
                row = {output: array[b].copy() for output, array in out.items()}
                results.append((row, self.states.after(states[b], row["state_out"]), ms))
        return results
