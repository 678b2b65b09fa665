"""What a call of each step costs on this device: measured once at start-up, kept as `costs.csv` next to the engines.

The scheduler sizes batches with it, admission computes capacity from it and the planner simulates with it, so that all
three believe the same figures. Steps:

    perceive  user audio and video of a unit     think  the context block of a unit     slot  one fed-back slot token
    perform   ONE evaluation of the velocity     render  PCM and frames of a unit
"""

from __future__ import annotations

import csv
import math
import statistics
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

STEPS = ("perceive", "think", "slot", "perform", "render")
COLUMNS = ("step", "batch", "history", "ms")


@dataclass(frozen=True)
class Cost:
    """One measurement: a call of `step` with `batch` rows over `history` cached tokens a row took `ms`."""

    step: str
    batch: int
    history: int
    ms: float

    def __post_init__(self) -> None:
        if self.step not in STEPS:
            raise ValueError(f"step: expected one of {', '.join(STEPS)}, got {self.step!r}")
        if self.batch < 1:
            raise ValueError(f"batch: expected >= 1 row, got {self.batch}")
        if self.history < 0:
            raise ValueError(f"history: expected >= 0 tokens, got {self.history}")
        if not (math.isfinite(self.ms) and self.ms >= 0):
            raise ValueError(f"ms: expected a finite time >= 0, got {self.ms}")


class CostTable:
    """Costs of calls between and beyond the measured points, linear in rows and in history.

    Below the smallest measured batch or history the smallest one counts; beyond the largest the last slope goes on. A
    step measured at one history only is taken as independent of it; one measured at one batch size only as gaining
    nothing from batching.
    """

    def __init__(self, costs: Iterable[Cost]) -> None:
        self.costs = tuple(sorted(costs, key=lambda c: (c.step, c.history, c.batch)))
        self._points: dict[str, dict[int, list[tuple[int, float]]]] = {}
        for cost in self.costs:
            points = self._points.setdefault(cost.step, {}).setdefault(cost.history, [])
            if points and points[-1][0] == cost.batch:
                raise ValueError(f"costs: {cost.step} with batch {cost.batch}, history {cost.history} is given twice")
            points.append((cost.batch, cost.ms))

    @classmethod
    def linear(cls, steps: Mapping[str, tuple[float, float]]) -> CostTable:
        """A table of `fixed + per_row * batch` milliseconds for each step: {"perform": (6.0, 1.5), ..}."""
        return cls(
            Cost(step, batch, 0, fixed + per_row * batch)
            for step, (fixed, per_row) in steps.items()
            for batch in (1, 2)
        )

    @classmethod
    def load(cls, path: Path) -> CostTable:
        """Reads `costs.csv`. ValueError names the file, the line and the field."""
        with path.open(newline="", errors="replace") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise ValueError(f"{path}: expected the columns {','.join(COLUMNS)}, got {reader.fieldnames}")
            costs = []
            for row in reader:
                try:
                    costs.append(Cost(row["step"], int(row["batch"]), int(row["history"]), float(row["ms"])))
                except (TypeError, ValueError) as error:
                    raise ValueError(f"{path}:{reader.line_num}: {error}") from None
        return cls(costs)

    def save(self, path: Path) -> None:
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows((c.step, c.batch, c.history, round(c.ms, 4)) for c in self.costs)

    @property
    def steps(self) -> tuple[str, ...]:
        return tuple(self._points)

    def ms(self, step: str, batch: int, history: int = 0) -> float:
        """Milliseconds of one call with `batch` rows over `history` cached tokens a row; 0 for no rows."""
        if batch <= 0:
            return 0.0
        try:
            by_history = self._points[step]
        except KeyError:
            raise ValueError(f"costs: no measurement of {step!r}, only of {', '.join(self._points)}") from None
        return _interpolate([(h, _rows(points, batch)) for h, points in by_history.items()], history)

    def unit_ms(self, history: int, solver_steps: int) -> float:
        """What one unit costs a session that has the device to itself, with one slot pass."""
        rest = sum(self.ms(step, 1, history) for step in self.steps if step != "perform")
        return rest + solver_steps * self.ms("perform", 1, history)

    def curve(self, step: str, max_batch: int, history: int = 0) -> list[float]:
        """Milliseconds for 0 .. max_batch rows, never falling: noise must not make a larger batch look cheaper."""
        costs = [0.0]
        for batch in range(1, max_batch + 1):
            costs.append(max(costs[-1], self.ms(step, batch, history)))
        return costs


def think_curve(costs: CostTable, max_batch: int, history: int, slots: float) -> list[float]:
    """Milliseconds of a whole think call of 0 .. max_batch rows: perceive, the block, and `slots` slot passes."""
    curves = [costs.curve(step, max_batch, history) for step in ("perceive", "think", "slot")]
    return [perceive + think + slots * slot for perceive, think, slot in zip(*curves, strict=True)]


def measure(
    step: str,
    batches: Sequence[int],
    call: Callable[[int], object],
    *,
    history: int = 0,
    repeats: int = 7,
    pick: Callable[[list[float]], float] = statistics.median,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> list[Cost]:
    """Time of `call(batch)` for each batch size, after one call that is not counted (allocation, autotuning).

    `pick` chooses from the repeats: the median, or `min` where other processes disturb the measurement.
    """
    costs = []
    for batch in batches:
        call(batch)
        times = []
        for _ in range(repeats):
            begin = clock_ns()
            call(batch)
            times.append((clock_ns() - begin) / 1e6)
        costs.append(Cost(step, batch, history, pick(times)))
    return costs


def _rows(points: list[tuple[int, float]], batch: int) -> float:
    if len(points) == 1:
        return points[0][1] * max(1.0, batch / points[0][0])
    return _interpolate(points, batch)


def _interpolate(points: list[tuple[int, float]], x: int) -> float:
    """Linear between points sorted by x, constant before the first, the last slope (never falling) after the last."""
    if len(points) == 1 or x <= points[0][0]:
        return points[0][1]
    index = min(bisect_right(points, (x, math.inf)), len(points) - 1)
    (x0, y0), (x1, y1) = points[index - 1], points[index]
    slope = (y1 - y0) / (x1 - x0)
    if x > x1:
        return y1 + max(slope, 0.0) * (x - x1)
    return y0 + slope * (x - x0)
