"""The batching policies that the planner compares: ours and what it is measured against.

All have the interface of `StepScheduler`. `RequestBatching` is what Triton's dynamic batcher gives by itself when one
request is one unit: a batch runs all its solver steps before the next one is formed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..runtime.budget.costs import CostTable
from ..runtime.performer.scheduler import NS_PER_MS, Row, StepScheduler
from .workload import Workload


class Batcher(Protocol):
    """What the performer asks: the interface of `StepScheduler`."""

    def join(self, job: Hashable, deadline_ns: int, steps: int, now_ns: int) -> None: ...

    def next_tick(self, now_ns: int) -> list[Row]: ...

    def completed(self, rows: Sequence[Row], now_ns: int) -> list[Hashable]: ...


class RequestBatching:
    """First come, first served; a batch starts when it is full or its first request has waited for `delay_ns`."""

    def __init__(self, max_batch: int, delay_ns: int = 0) -> None:
        if max_batch < 1:
            raise ValueError(f"max_batch: expected >= 1 row, got {max_batch}")
        self.max_batch, self.delay_ns = max_batch, delay_ns
        self._queue: deque[tuple[Hashable, int, int]] = deque()  # job, steps, joined
        self._running: list[tuple[Hashable, int]] = []
        self._step = 0

    def __len__(self) -> int:
        return len(self._queue) + len(self._running)

    def join(self, job: Hashable, deadline_ns: int, steps: int, now_ns: int) -> None:
        """Queues a job of `steps` evaluations; the deadline plays no part."""
        self._queue.append((job, steps, now_ns))

    def leave(self, job: Hashable) -> bool:
        """Takes a queued job out. A running one stays: a request inside a batch cannot be cancelled in Triton."""
        for entry in self._queue:
            if entry[0] == job:
                self._queue.remove(entry)
                return True
        return False

    def next_tick(self, now_ns: int) -> list[Row]:
        """The rows of the next evaluation; empty: nothing is queued, or the batch waits for company."""
        if not self._running and self._queue:
            if len(self._queue) < self.max_batch and now_ns < self._queue[0][2] + self.delay_ns:
                return []
            count = min(self.max_batch, len(self._queue))
            self._running = [self._queue.popleft()[:2] for _ in range(count)]
            self._step = 0
        return [Row(job, self._step, steps, False) for job, steps in self._running if self._step < steps]

    def completed(self, rows: Sequence[Row], now_ns: int) -> list[Hashable]:
        """Books an evaluation. Results are out when the whole batch is done: it is one request execution."""
        self._step += 1
        if self._step < max(steps for _, steps in self._running):
            return []
        done = [job for job, _ in self._running]
        self._running = []
        return done


@dataclass(frozen=True)
class Policy:
    """How units are put into batches.

    delay_ns    how long a batch waits for company, in thinker and baseline
    cost_aware  the thinker's gather window knows what its batches cost
    """

    name: str
    make: Callable[[CostTable, Workload], Batcher]
    max_batch: int
    delay_ns: int
    cost_aware: bool = False


def step_level(max_batch: int = 64, gather_ms: float = 1.5, degrade: bool = False) -> Policy:
    """Ours. Without `degrade` every unit gets all its solver steps, so that policies are compared at one quality."""

    def make(costs: CostTable, load: Workload) -> Batcher:
        return StepScheduler(costs, max_batch, history=load.history, degrade=degrade)

    return Policy("step-level", make, max_batch, round(gather_ms * NS_PER_MS), cost_aware=True)


def request_level(max_batch: int = 64, delay_ms: float = 0.0) -> Policy:
    """Triton's dynamic batching with `max_queue_delay_microseconds = 1000 * delay_ms`."""
    delay_ns = round(delay_ms * NS_PER_MS)
    return Policy("request-level", lambda costs, load: RequestBatching(max_batch, delay_ns), max_batch, delay_ns)


def one_at_a_time() -> Policy:
    """No batching at all, neither in the performer nor in the thinker."""
    return Policy("one-at-a-time", lambda costs, load: RequestBatching(1), 1, 0)
