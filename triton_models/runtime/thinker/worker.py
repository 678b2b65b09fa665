"""The thread that owns a Thinker: batches think jobs of sessions that are ready together, and opens in small steps.

Think jobs wait in a gather window for those of other sessions; everything else goes with the next turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from ..messages import CloseJob, OpenJob, PerceiveJob, SessionError, ThinkJob
from ..worker import Item, Worker, fail_items, resolve
from .gather import GatherWindow
from .thinker import Thinker

# Units of several sessions that become ready this close together share a think call. Two rows cost about a third more
# than one (tiny, CPU), so waiting longer than a fraction of a call would cost more latency than it saves work.
GATHER_NS = 1_500_000


class ThinkerWorker(Worker):
    """Batches perceive and think jobs over sessions; advances openings one prompt chunk a turn."""

    def __init__(
        self,
        thinker: Thinker,
        capacity: int = 1024,
        gather_ns: int = GATHER_NS,
        costs: Sequence[float] | None = None,
    ) -> None:
        """costs: of a think call of 0, 1, .. max_batch rows (`costs.think_curve`); None: a larger batch is better."""
        super().__init__("thinker", capacity)
        self._thinker = thinker
        self._window = GatherWindow(gather_ns, thinker.max_batch, costs=costs)
        self._thinking: dict[str, Item] = {}  # think jobs in the gather window, by session
        self._opening: list[tuple[OpenJob, Iterator[None], Future[Any]]] = []
        self._next_chunk = 0.0  # when (time.monotonic) the next chunk of a prompt may be read

    def _wait_seconds(self) -> float | None:
        wake = self._window.wake_ns()
        waits = [] if wake is None else [(wake - time.monotonic_ns()) / 1e9]
        if self._opening:
            waits.append(self._next_chunk - time.monotonic())
        return max(0.0, min(waits)) if waits else None

    def _round(self, items: Sequence[Item]) -> None:
        pending = list(items)
        while pending:  # jobs of one session keep their order: one of them in a round
            firsts: dict[str, Item] = {}
            later = [item for item in pending if firsts.setdefault(item[0].session, item) is not item]
            self._take(list(firsts.values()))
            pending = later
        self._think()
        if self._opening and time.monotonic() >= self._next_chunk:
            # One chunk of one prompt a round, in turns, and half of the time at most while others talk: many openings
            # delay nobody longer than one, and leave them a processor.
            begin, others = time.monotonic(), self._thinker.open_sessions > len(self._opening)
            self._step_opening(*self._opening.pop(0))
            end = time.monotonic()
            self._next_chunk = 2 * end - begin if others else end

    def _take(self, items: list[Item]) -> None:
        """At most one job of each session. Closes come first: they free pages that others may be waiting for."""
        if any(job.session in self._thinking and not isinstance(job, CloseJob) for job, _ in items):
            self._think(now=True)  # a session's next job comes after its think
        for job, future in items:
            if isinstance(job, CloseJob):
                self._close(job)
                resolve(future, None)
        for job, future in items:
            if isinstance(job, OpenJob):
                self._step_opening(job, self._thinker.open_stepwise(job), future)
        for job, future in items:
            if isinstance(job, ThinkJob):
                now = time.monotonic_ns()
                self._thinking[job.session] = job, future
                latest = now + self._window.window_ns
                self._window.add(job.session, latest if job.latest_ns is None else min(latest, job.latest_ns), now)
        self._batch(items, PerceiveJob, self._thinker.perceive)
        for job, future in items:
            if not isinstance(job, CloseJob | OpenJob | ThinkJob | PerceiveJob):
                resolve(future, SessionError("INTERNAL", f"the thinker takes no {type(job).__name__}"))

    def _think(self, now: bool = False) -> None:
        """Runs the think jobs that are due, or (`now`) all that wait."""
        while sessions := self._window.take(time.monotonic_ns() + (self._window.window_ns if now else 0)):
            items = [self._thinking.pop(str(session)) for session in sessions]
            self._batch(items, ThinkJob, self._thinker.think)

    def _batch(self, items: list[Item], kind: type, call: Callable[[list[Any]], Sequence[Any]]) -> None:
        chosen = [item for item in items if isinstance(item[0], kind)]
        if not chosen:
            return
        try:
            results = call([job for job, _ in chosen])
        except Exception as error:
            fail_items(chosen, self._failure(error))  # some may have come with an earlier turn
            raise
        for (_, future), result in zip(chosen, results, strict=True):
            resolve(future, result)

    def _close(self, job: CloseJob) -> None:
        self._thinker.close(job)
        waiting = self._thinking.get(job.session)
        if waiting is not None and not self._thinker.is_open(job.session):
            del self._thinking[job.session]
            resolve(waiting[1], SessionError("ABORTED", f"session {job.session!r} was closed"))
        if not self._thinker.is_open(job.session):
            self._window.close(job.session)

    def _step_opening(self, job: OpenJob, steps: Iterator[None], future: Future[Any]) -> None:
        try:
            next(steps)
        except StopIteration:
            self._window.open(job.session, time.monotonic_ns())
            resolve(future, None)
        except SessionError as error:
            resolve(future, error)
        except Exception as error:
            resolve(future, self._failure(error))  # it is none of the jobs of this round
            raise
        else:
            self._opening.append((job, steps, future))

    def _abandon(self, error: SessionError) -> None:
        opening, self._opening = self._opening, []
        for job, _, future in opening:
            self._close(CloseJob(job.session, job.epoch))
            resolve(future, error)
        thinking, self._thinking = self._thinking, {}
        while self._window.take(time.monotonic_ns() + self._window.window_ns):
            pass
        fail_items(list(thinking.values()), error)

    def _idle(self) -> None:
        self._thinker.check_integrity()
