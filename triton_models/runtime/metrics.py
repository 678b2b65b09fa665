"""Plain counters and timings of one role; the Triton models export them, tests and benchmarks read them."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass
class _Timing:
    calls: int = 0
    rows: int = 0
    total_ms: float = 0.0
    max_ms: float = 0.0


class Metrics:
    """Thread-safe. A fixed set of names by construction: callers pass literals, never client data."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[str, int] = {}
        self._timings: dict[str, _Timing] = {}

    def count(self, name: str, amount: int = 1) -> None:
        with self._lock:
            self._counters[name] = self._counters.get(name, 0) + amount

    def time(self, name: str, ms: float, rows: int = 1) -> None:
        """One engine call of `rows` rows that took `ms` milliseconds."""
        with self._lock:
            timing = self._timings.setdefault(name, _Timing())
            timing.calls += 1
            timing.rows += rows
            timing.total_ms += ms
            timing.max_ms = max(timing.max_ms, ms)

    def snapshot(self) -> dict[str, float]:
        """Counters by name, and of each timing `name.calls`, `name.rows`, `name.total_ms`, `name.max_ms`."""
        with self._lock:
            values: dict[str, float] = dict(self._counters)
            for name, timing in self._timings.items():
                values[f"{name}.calls"] = timing.calls
                values[f"{name}.rows"] = timing.rows
                values[f"{name}.total_ms"] = timing.total_ms
                values[f"{name}.max_ms"] = timing.max_ms
        return values
