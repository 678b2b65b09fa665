"""Codec states of the sessions of one step, wherever they are kept between units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ..kv.tables import stack


class States(Protocol):
    """A state belongs to its session from `open` to `close`; what it is, only its `States` know. One thread calls."""

    def open(self) -> Any:
        """The state of a session before its first unit. Raises EngineError if there is no room."""
        ...

    def close(self, state: Any) -> None: ...

    def run(self, inputs: Mapping[str, np.ndarray], states: Sequence[Any]) -> dict[str, np.ndarray]:
        """A call over these states: all outputs by name. `state_out` [B, ..] is finite if the new states are."""
        ...

    def after(self, state: Any, out: np.ndarray) -> Any:
        """The state of a session after a call that took `state` and gave `out`, its row of `state_out`."""
        ...


class HostStates:
    """Arrays [S] of the host that travel with each call."""

    def __init__(self, engine: Any, start: np.ndarray) -> None:
        self._engine, self._start = engine, start  # shared by all sessions: nobody writes into it

    def open(self) -> np.ndarray:
        return self._start

    def close(self, state: np.ndarray) -> None:
        pass

    def run(self, inputs: Mapping[str, np.ndarray], states: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        return self._engine.run({**inputs, "state": stack(states)})

    def after(self, state: np.ndarray, out: np.ndarray) -> np.ndarray:
        return out
