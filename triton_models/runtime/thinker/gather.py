"""When the thinker stops waiting for company: the short gather window before one `think` call.

Policy only: no tensors, no clock. Units of several sessions that become ready within the window go through one call.
Waiting costs latency, so a batch goes at once when it is full, when a deadline presses, when nobody else can come, or
when company would save nothing because a row costs as much in a batch as alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

NS_PER_MS = 1_000_000
# A batch whose rows cost no more than this above those of the best batch is as good: the others need not wait for it.
SAME_COST = 1.1


@dataclass(slots=True)
class _Waiting:
    since_ns: int
    latest_ns: int


class GatherWindow:
    """Jobs, one per session, that wait to share a call.

    window_ns   how long the first job waits at most
    max_batch   rows that the engine takes
    period_ns   a session sends one unit a period ..
    early_ns    .. and at most this much early (network jitter), so one that has just sent cannot come again at once
    costs       what a call of 0, 1, .. max_batch rows costs (any unit); None: a larger batch is always better
    """

    def __init__(
        self,
        window_ns: int,
        max_batch: int,
        *,
        period_ns: int = 160 * NS_PER_MS,
        early_ns: int = 40 * NS_PER_MS,
        costs: Sequence[float] | None = None,
    ) -> None:
        if max_batch < 1:
            raise ValueError(f"max_batch: expected >= 1 row, got {max_batch}")
        if window_ns < 0:
            raise ValueError(f"window_ns: expected >= 0, got {window_ns}")
        if costs is not None and len(costs) != max_batch + 1:
            raise ValueError(f"costs: expected those of 0 to {max_batch} rows, got {len(costs)} figures")
        self.window_ns, self.max_batch = window_ns, max_batch
        self._useful = list(range(max_batch + 1)) if costs is None else _useful(costs)
        self._rest_ns, self._silent_ns = max(0, period_ns - early_ns), period_ns
        self._waiting: dict[Hashable, _Waiting] = {}
        self._expected_ns: dict[Hashable, int] = {}  # per open session: when it may send next

    def __len__(self) -> int:
        return len(self._waiting)

    def open(self, session: Hashable, now_ns: int) -> None:
        """A session that may send from now on."""
        self._expected_ns[session] = now_ns

    def close(self, session: Hashable) -> None:
        """The session is gone, and so is its job."""
        self._expected_ns.pop(session, None)
        self._waiting.pop(session, None)

    def add(self, session: Hashable, latest_ns: int, now_ns: int) -> None:
        """A unit of `session` is ready; it is late unless its call starts by `latest_ns`."""
        if session in self._waiting:
            raise ValueError(f"session: {session!r} is waiting already; expected one unit at a time")
        self._waiting[session] = _Waiting(now_ns, latest_ns)
        self._expected_ns[session] = now_ns + self._rest_ns

    def take(self, now_ns: int) -> list[Hashable]:
        """The sessions of the call that starts now, most urgent first; none: ask again at `wake_ns`, or after `add`."""
        wake_ns = self.wake_ns()
        if wake_ns is None or now_ns < wake_ns:
            return []
        order = sorted(self._waiting, key=lambda session: self._waiting[session].latest_ns)
        batch = order[: self._useful[min(len(order), self.max_batch)]]
        for session in batch:
            del self._waiting[session]
        return batch

    def wake_ns(self) -> int | None:
        """When the next call is due (possibly in the past); None if nobody waits."""
        if not self._waiting:
            return None
        first_ns = min(job.since_ns for job in self._waiting.values())
        if len(self._waiting) >= self._useful[-1]:
            return first_ns
        due_ns = min(first_ns + self.window_ns, *(job.latest_ns for job in self._waiting.values()))
        others = (at for session, at in self._expected_ns.items() if session not in self._waiting)
        # One that is a whole period late is open and silent: nobody waits for it.
        comes = any(at < due_ns and first_ns <= at + self._silent_ns for at in others)
        return due_ns if comes else first_ns


def _useful(costs: Sequence[float]) -> list[int]:
    """For 0, 1, .. rows that wait: the smallest batch of them whose rows cost hardly more than in the best one."""
    useful, best = [0], float("inf")
    for waiting in range(1, len(costs)):
        best = min(best, costs[waiting] / waiting)
        useful.append(next(size for size in range(1, waiting + 1) if costs[size] / size <= best * SAME_COST))
    return useful
