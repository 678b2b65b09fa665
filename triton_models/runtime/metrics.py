"""Plain counters, timings and observations of one role. The Triton models export them; tests, benchmarks read them."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

# Observations that wait for an exporter, per name. It comes twice a second and no step is called thousands of times a
# second; without one (tests, benchmarks) the oldest fall out.
MAX_OBSERVATIONS = 4096
# Events of a kind that wait to be booked. Booking all of them takes up to 0.3 ms.
MAX_EVENTS = 256


@dataclass
class _Timing:
    calls: int = 0
    rows: int = 0
    total_ms: float = 0.0
    max_ms: float = 0.0


class Metrics:
    """Thread-safe. A fixed set of names by construction: callers pass literals, never client data.

    Callers stand between two engine calls, where every line is read from cold caches. So an event is only noted, which
    is one atomic append, and booked when somebody reads or MAX_EVENTS of its kind have come.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # of the books, and whoever takes events out
        self._counted: deque[tuple[str, int]] = deque()
        self._timed: deque[tuple[str, float, int]] = deque()
        self._observed: deque[tuple[str, float]] = deque()
        self._counters: dict[str, int] = {}
        self._timings: dict[str, _Timing] = {}
        self._observations: dict[str, deque[float]] = {}

    def count(self, name: str, amount: int = 1) -> None:
        self._counted.append((name, amount))
        if len(self._counted) >= MAX_EVENTS:
            self._book()

    def time(self, name: str, ms: float, rows: int = 1) -> None:
        """One engine call of `rows` rows that took `ms` milliseconds; also observes `name.batch`."""
        self._timed.append((name, ms, rows))
        if len(self._timed) >= MAX_EVENTS:
            self._book()

    def observe(self, name: str, value: float) -> None:
        """One value of a distribution."""
        self._observed.append((name, value))
        if len(self._observed) >= MAX_EVENTS:
            self._book()

    def take(self) -> dict[str, list[float]]:
        """The observations since the last call, by name, oldest first. They are handed out once."""
        self._book()
        with self._lock:
            taken, self._observations = self._observations, {}
        return {name: list(values) for name, values in taken.items()}

    def snapshot(self) -> dict[str, float]:
        """Counters by name, and of each timing `name.calls`, `name.rows`, `name.total_ms`, `name.max_ms`."""
        self._book()
        with self._lock:
            values: dict[str, float] = dict(self._counters)
            for name, timing in self._timings.items():
                values[f"{name}.calls"] = timing.calls
                values[f"{name}.rows"] = timing.rows
                values[f"{name}.total_ms"] = timing.total_ms
                values[f"{name}.max_ms"] = timing.max_ms
        return values

    def _book(self) -> None:
        """Moves the events into the books."""
        with self._lock:
            while self._counted:
                name, amount = self._counted.popleft()
                self._counters[name] = self._counters.get(name, 0) + amount
            while self._timed:
                name, ms, rows = self._timed.popleft()
                timing = self._timings.setdefault(name, _Timing())
                timing.calls += 1
                timing.rows += rows
                timing.total_ms += ms
                timing.max_ms = max(timing.max_ms, ms)
                self._keep(f"{name}.batch", rows)
            while self._observed:
                self._keep(*self._observed.popleft())

    def _keep(self, name: str, value: float) -> None:
        if name not in self._observations:
            self._observations[name] = deque(maxlen=MAX_OBSERVATIONS)
        self._observations[name].append(value)
