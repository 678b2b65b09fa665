"""Plain counters, timings and observations of one role. The Triton models export them; tests, benchmarks read them."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

# Observations that wait for an exporter, per name. It comes twice a second and no step is called thousands of times a
# second; without one (tests, benchmarks) the oldest fall out.
MAX_OBSERVATIONS = 4096


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
        self._observations: dict[str, deque[float]] = {}

    def count(self, name: str, amount: int = 1) -> None:
        with self._lock:
            self._counters[name] = self._counters.get(name, 0) + amount

    def time(self, name: str, ms: float, rows: int = 1) -> None:
        """One engine call of `rows` rows that took `ms` milliseconds; also observes `name.batch`."""
        with self._lock:
            timing = self._timings.setdefault(name, _Timing())
            timing.calls += 1
            timing.rows += rows
            timing.total_ms += ms
            timing.max_ms = max(timing.max_ms, ms)
        self.observe(f"{name}.batch", rows)

    def observe(self, name: str, value: float) -> None:
        """One value of a distribution."""
        with self._lock:
            if name not in self._observations:
                self._observations[name] = deque(maxlen=MAX_OBSERVATIONS)
            self._observations[name].append(value)

    def take(self) -> dict[str, list[float]]:
        """The observations since the last call, by name, oldest first. They are handed out once."""
        with self._lock:
            taken, self._observations = self._observations, {}
        return {name: list(values) for name, values in taken.items()}

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
