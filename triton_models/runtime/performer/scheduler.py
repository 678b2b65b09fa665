"""Which rows the performer's next engine call holds: in-flight batching at the granularity of one solver step.

Policy only: no tensors, no clock. A tick is one evaluation of the velocity field for a batch of rows, each at its own
tau. Sessions join between any two ticks and leave when their last evaluation is done:

    join(job) --> next_tick() -> rows --> engine call --> completed(rows) -> jobs done --> next_tick() ...

Order is earliest deadline first (EDF). A large batch serves more rows per millisecond but makes the most urgent row
wait longer for each of its evaluations. So a batch grows only as long as no row that can still be on time becomes late,
with one exception: it is never smaller than the demand needs. Below that size the backlog would grow with every tick
and the rows saved now would be paid for with more rows later (in simulation, 45 sessions at 8 + 0.5 ms a row: 24% on
time without this floor, 99% with it).
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..budget.costs import CostTable

NS_PER_MS = 1_000_000
# A late row waits behind rows that can still be on time, but not for longer than this after its deadline: one unit.
PATIENCE_NS = 160 * NS_PER_MS
# The demand is measured over this time: three units, long enough to see every session more than once.
DEMAND_NS = 480 * NS_PER_MS
DEMAND_HEADROOM = 1.05
# A row alone that costs no more than this times a row of the cheapest batch: batching gains nothing.
NO_GAIN = 1.05


class Row(NamedTuple):
    """One row of a tick: evaluation `step` of `steps` (0 first). `jump`: go straight to tau = 0 and skip the rest."""

    job: Hashable
    step: int
    steps: int
    jump: bool

    @property
    def last(self) -> bool:
        """True if the latents are clean after this evaluation."""
        return self.jump or self.step + 1 == self.steps


@dataclass(eq=False, slots=True)
class _Entry:
    deadline_ns: int
    tie: int
    job: Hashable
    steps: int
    step: int = 0
    ticking: bool = False  # in a call: a job that left and came again is not


class StepScheduler:
    """Earliest deadline first over solver steps.

    costs       measured costs of `perform`
    max_batch   rows that the engine takes
    history     cached tokens a row at which the costs are taken
    degrade     a row that cannot be on time with all its evaluations skips some; without it, it runs all of them late
    margin      factor on the measured cost of the tick after this one when deciding whether a row has time for it:
                calls slower than the median must not make a row late that could have jumped
    """

    def __init__(
        self, costs: CostTable, max_batch: int, *, history: int = 0, degrade: bool = True, margin: float = 1.1
    ) -> None:
        if max_batch < 1:
            raise ValueError(f"max_batch: expected >= 1 row, got {max_batch}")
        self.max_batch = max_batch
        self.degrade = degrade
        self.margin = margin
        self.skipped = 0  # evaluations left out, over all jobs
        curve = costs.curve("perform", max_batch, history)
        self._cost_ns = [round(ms * NS_PER_MS) for ms in curve]
        # Evaluations per nanosecond that batches of 0, 1, .. rows sustain.
        self._rate = [size / (ms * NS_PER_MS) if ms > 0 else math.inf for size, ms in enumerate(curve)]
        # Where a row costs as much in a batch as alone, rows run one after the other: the first is done sooner, the
        # last not later, and whoever shares the device waits for shorter calls.
        cheapest = min(ms / size for size, ms in enumerate(curve) if size)
        self._widest = 1 if 0 < curve[1] <= NO_GAIN * cheapest else max_batch
        self._demand = 0.0  # evaluations asked for, decaying over DEMAND_NS
        self._demand_at_ns = 0
        self._entries: list[tuple[int, int, _Entry]] = []  # deadline, tie: sorted, EDF; no two ties are equal
        self._by_job: dict[Hashable, _Entry] = {}
        self._joined = 0

    def __len__(self) -> int:
        return len(self._entries)

    def join(self, job: Hashable, deadline_ns: int, steps: int, now_ns: int) -> None:
        """Adds a job of `steps` evaluations that should be done at `deadline_ns`. ValueError if it is there already."""
        if job in self._by_job:
            raise ValueError(f"job: {job!r} has joined already")
        if steps < 1:
            raise ValueError(f"steps: expected >= 1, got {steps}")
        # Equal deadlines are served in an order that differs from unit to unit, so that nobody is always the last:
        # the joins are numbered and the number is mixed (Fibonacci hashing, Knuth 6.4).
        self._joined += 1
        entry = _Entry(deadline_ns, self._joined * 0x9E3779B97F4A7C15 % 2**64, job, steps)
        self._by_job[job] = entry
        insort(self._entries, (entry.deadline_ns, entry.tie, entry))
        self._demand = self._decayed(now_ns) + steps
        self._demand_at_ns = now_ns

    def leave(self, job: Hashable) -> bool:
        """Removes a job (cancelled, or its session is gone), also in the middle of a tick. False if it is not there."""
        entry = self._by_job.pop(job, None)
        if entry is None:
            return False
        del self._entries[bisect_left(self._entries, (entry.deadline_ns, entry.tie))]
        return True

    def next_tick(self, now_ns: int) -> list[Row]:
        """The rows of the next engine call, most urgent first; empty if there is no job."""
        batch = self._choose(now_ns)
        after_next_ns = now_ns + round((1 + self.margin) * self._cost_ns[len(batch)])
        rows = []
        for entry in batch:
            entry.ticking = True
            # It jumps if after this tick there is no time for another one before the deadline.
            jump = self.degrade and entry.steps - entry.step > 1 and after_next_ns > entry.deadline_ns
            rows.append(Row(entry.job, entry.step, entry.steps, jump))
        return rows

    def completed(self, rows: Sequence[Row], now_ns: int) -> list[Hashable]:
        """Books a tick; returns the jobs that are done. Rows whose job has left meanwhile are passed over."""
        done = []
        for row in rows:
            entry = self._by_job.get(row.job)
            if entry is None or not entry.ticking:
                continue
            entry.ticking = False
            entry.step += 1
            if row.last:
                self.skipped += entry.steps - entry.step
                self.leave(row.job)
                done.append(row.job)
        return done

    def _choose(self, now_ns: int) -> list[_Entry]:
        if len(self._entries) == 1:  # alone: on time or late, it is the next one whatever the demand
            return [self._entries[0][2]]
        cost, limit = self._cost_ns, min(self._widest, len(self._entries))
        floor = min(self._needed_batch(now_ns), limit)
        slack = math.inf  # the longest tick that every chosen row can bear
        batch: list[_Entry] = []
        late: list[_Entry] = []
        for deadline_ns, _, entry in self._entries:
            size = len(batch) + 1
            if size > limit:
                break
            spare = deadline_ns - now_ns
            # The longest tick it bears now. Later ticks can do without the rows behind it, not without those before it.
            bears = spare - (entry.steps - entry.step - 1) * cost[size]
            if bears < cost[size] and self.degrade:
                bears = spare  # on time with fewer evaluations, if at all
            if bears < cost[size]:
                if -spare > PATIENCE_NS:
                    batch.append(entry)
                else:
                    late.append(entry)
                continue
            slack = min(slack, bears)
            if size > floor and cost[size] > slack:
                break
            batch.append(entry)
        for entry in late:  # they ride along where they hurt nobody
            size = len(batch) + 1
            if size > limit or (size > floor and cost[size] > slack):
                break
            batch.append(entry)
        return batch

    def _needed_batch(self, now_ns: int) -> int:
        """Rows of the smallest batch that keeps up with the demand; the best there is if none does."""
        demand = self._decayed(now_ns) / DEMAND_NS * DEMAND_HEADROOM
        for size in range(1, self.max_batch):
            if self._rate[size] >= demand:
                return size
        return self.max_batch

    def _decayed(self, now_ns: int) -> float:
        return self._demand * math.exp(min(0, self._demand_at_ns - now_ns) / DEMAND_NS)
