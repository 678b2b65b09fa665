"""The two threads that own a Thinker and a Performer. Jobs go in from any thread or event loop, futures come back.

    submit() --> bounded queue --> one turn: batched engine calls --> futures

Think jobs wait in a gather window for those of other sessions; everything else goes with the next turn. A turn that
crashes fails its own jobs and not the thread. CloseJobs are taken even when the queue is full: refusing one
would leak the pages of its session.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from .gather import GatherWindow
from .messages import (
    CloseJob,
    OpenJob,
    PerceiveJob,
    PerformJob,
    PerformResult,
    RenderJob,
    RenderResult,
    SessionError,
    ThinkJob,
)
from .performer import Key, Outcome, Performer, job_key
from .renderer import Renderer
from .thinker import Thinker

Job = OpenJob | PerceiveJob | ThinkJob | PerformJob | CloseJob
Item = tuple[Job, Future[Any]]

IDLE_SECONDS = 1.0  # an idle thread looks after its invariants this often
RETRY_SECONDS = 0.0005  # jobs are there, but the scheduler waits for company
# Units of several sessions that become ready this close together share a think call. Two rows cost about a third more
# than one (tiny, CPU), so waiting longer than a fraction of a call would cost more latency than it saves work.
GATHER_NS = 1_500_000

_log = logging.getLogger(__name__)


class Worker(ABC):
    """A thread with a bounded queue. Subclasses say what a turn does; what they own belongs to whoever takes a turn."""

    def __init__(self, name: str, capacity: int) -> None:
        self.name = name
        self._capacity = capacity
        self._queue: deque[Item] = deque()
        self._ready = threading.Condition()
        self._stopping = False
        self._turning = threading.Lock()  # whose holder takes turns: the thread, or a caller of `serve`
        self._waits = False  # the thread has jobs and waits for its turn
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, job: Job) -> Future[Any]:
        """Queues a job. Its future ends in the result or in a SessionError, also if the queue is full or has ended."""
        future: Future[Any] = Future()
        with self._ready:
            if self._stopping:
                future.set_exception(SessionError("UNAVAILABLE", f"the {self.name} is shutting down"))
            elif len(self._queue) >= self._capacity and not isinstance(job, CloseJob):
                future.set_exception(
                    SessionError("RESOURCE_EXHAUSTED", f"the {self.name} has {len(self._queue)} jobs queued already")
                )
            else:
                self._queue.append((job, future))
                self._ready.notify()
        return future

    def serve(self, job: Job, done: Callable[[Future[Any]], None]) -> None:
        """Like `submit`, with `done` called at the end. A job that is alone is done here and now: it keeps nobody
        waiting, and no thread has to wake up for it. Should another job come meanwhile, the thread takes over."""
        future: Future[Any] = Future()
        if self._turning.acquire(blocking=False):
            try:
                with self._ready:
                    alone = not self._queue and not self._stopping and self._alone(job)
                if alone:
                    future.add_done_callback(done)
                    self._guarded_turn([(job, future)])
                    while not (future.done() or self._queue or self._waits):
                        self._guarded_turn([])
            finally:
                self._turning.release()
            if alone:
                if not future.done():
                    with self._ready:
                        self._ready.notify()
                return
        self.submit(job).add_done_callback(done)

    def stop(self, timeout: float = 10.0) -> None:
        """Ends the thread after the turn it is in and fails everything that is pending with UNAVAILABLE."""
        with self._ready:
            self._stopping = True
            self._ready.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    # -- what subclasses say -----------------------------------------------------------------------------------
    @abstractmethod
    def _turn(self, items: Sequence[Item]) -> None:
        """Serves the jobs that arrived and resolves futures as results come."""

    @abstractmethod
    def _alone(self, job: Job) -> bool:
        """Whether no other job can come that this one would have to share its turns with."""

    @abstractmethod
    def _wait_seconds(self) -> float:
        """How long to wait for a first job: 0 if there is work at hand."""

    @abstractmethod
    def _prepare(self) -> None:
        """Called after a turn that left nothing to do: the time until the next job is free."""

    @abstractmethod
    def _abandon(self, error: SessionError) -> None:
        """Fails and forgets every job that is under way."""

    @abstractmethod
    def _idle(self) -> None:
        """Called now and then while there is nothing to do."""

    # -- the thread --------------------------------------------------------------------------------------------
    def _loop(self) -> None:
        while (items := self._collect()) is not None:
            self._waits = bool(items)
            with self._turning:
                self._waits = False
                self._guarded_turn(items)
        failure = SessionError("UNAVAILABLE", f"the {self.name} is shutting down")
        with self._turning:
            self._abandon(failure)
        with self._ready:
            left = list(self._queue)
            self._queue.clear()
        _fail(left, failure)

    def _guarded_turn(self, items: list[Item]) -> None:
        try:
            if items or self._wait_seconds() < IDLE_SECONDS:
                self._turn(items)
                if not self._queue and self._wait_seconds() > 0:
                    self._prepare()
            else:
                self._idle()
        except Exception as error:
            _log.exception("a turn of the %s crashed", self.name)
            failure = self._failure(error)
            self._abandon(failure)
            _fail(items, failure)

    def _failure(self, error: Exception) -> SessionError:
        return SessionError("INTERNAL", f"the {self.name} failed: {error}")

    def _collect(self) -> list[Item] | None:
        """The jobs of the next turn, perhaps none; None when the worker stops."""
        with self._ready:
            wait = self._wait_seconds()
            if not self._queue and not self._stopping and wait > 0:
                self._ready.wait(wait)
            if self._stopping:
                return None
            items = list(self._queue)
            self._queue.clear()
        # A future that was cancelled while it was queued drops its job, but never a close.
        return [(j, f) for j, f in items if f.set_running_or_notify_cancel() or isinstance(j, CloseJob)]


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

    def _wait_seconds(self) -> float:
        if self._opening:
            return 0.0
        wake = self._window.wake_ns()
        return IDLE_SECONDS if wake is None else max(0.0, (wake - time.monotonic_ns()) / 1e9)

    def _turn(self, items: Sequence[Item]) -> None:
        pending = list(items)
        while pending:  # jobs of one session keep their order: one of them in a round
            firsts: dict[str, Item] = {}
            later = [item for item in pending if firsts.setdefault(item[0].session, item) is not item]
            self._round(list(firsts.values()))
            pending = later
        self._think()
        opening, self._opening = self._opening, []
        for job, steps, future in opening:
            self._step_opening(job, steps, future)

    def _round(self, items: list[Item]) -> None:
        """At most one job of each session. Closes come first: they free pages that others may be waiting for."""
        if any(job.session in self._thinking and not isinstance(job, CloseJob) for job, _ in items):
            self._think(now=True)  # a session's next job comes after its think
        for job, future in items:
            if isinstance(job, CloseJob):
                self._close(job)
                _resolve(future, None)
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
                _resolve(future, SessionError("INTERNAL", f"the thinker takes no {type(job).__name__}"))

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
            _fail(chosen, self._failure(error))  # some may have come with an earlier turn
            raise
        for (_, future), result in zip(chosen, results, strict=True):
            _resolve(future, result)

    def _close(self, job: CloseJob) -> None:
        self._thinker.close(job)
        waiting = self._thinking.get(job.session)
        if waiting is not None and not self._thinker.is_open(job.session):
            del self._thinking[job.session]
            _resolve(waiting[1], SessionError("ABORTED", f"session {job.session!r} was closed"))
        if not self._thinker.is_open(job.session):
            self._window.close(job.session)

    def _step_opening(self, job: OpenJob, steps: Iterator[None], future: Future[Any]) -> None:
        try:
            next(steps)
        except StopIteration:
            self._window.open(job.session, time.monotonic_ns())
            _resolve(future, None)
        except SessionError as error:
            _resolve(future, error)
        else:
            self._opening.append((job, steps, future))

    def _abandon(self, error: SessionError) -> None:
        opening, self._opening = self._opening, []
        for job, _, future in opening:
            self._close(CloseJob(job.session, job.epoch))
            _resolve(future, error)
        thinking, self._thinking = self._thinking, {}
        while self._window.take(time.monotonic_ns() + self._window.window_ns):
            pass
        _fail(list(thinking.values()), error)

    def _alone(self, job: Job) -> bool:
        return isinstance(job, ThinkJob | PerceiveJob) and self._thinker.open_sessions == 1

    def _prepare(self) -> None:
        self._thinker.prepare()

    def _idle(self) -> None:
        self._thinker.check_integrity()


class PerformerWorker(Worker):
    """Runs solver steps while there are jobs; new ones join between two steps. What a step finished is rendered."""

    def __init__(self, performer: Performer, renderer: Renderer, capacity: int = 1024) -> None:
        super().__init__("performer", capacity)
        self._performer, self._renderer = performer, renderer
        self._futures: dict[Key, Future[Any]] = {}

    def _wait_seconds(self) -> float:
        if not self._performer.pending:
            return IDLE_SECONDS
        return RETRY_SECONDS if self._performer.held_back else 0.0

    def _turn(self, items: Sequence[Item]) -> None:
        for job, future in items:
            if isinstance(job, PerformJob):
                try:
                    self._performer.join(job)
                    self._futures[job_key(job)] = future
                except SessionError as error:
                    _resolve(future, error)
            elif isinstance(job, CloseJob):
                self._finish(self._performer.leave(job))
                self._renderer.close(job.session, job.epoch)
                _resolve(future, None)
            else:
                _resolve(future, SessionError("INTERNAL", f"the performer takes no {type(job).__name__}"))
        self._finish(self._performer.tick())

    def _alone(self, job: Job) -> bool:
        return isinstance(job, PerformJob) and not self._performer.pending and self._renderer.alone(job.session)

    def _prepare(self) -> None:
        self._performer.prepare()

    def _idle(self) -> None:
        """Nothing to look after: the performer allocates nothing."""

    def _finish(self, outcomes: Sequence[Outcome]) -> None:
        if not outcomes:
            return
        solved: list[tuple[Future[Any], PerformResult]] = []
        for job, result in outcomes:
            future = self._futures[job_key(job)]
            if isinstance(result, PerformResult):
                solved.append((future, result))
            else:
                _resolve(future, result)
        jobs = [RenderJob(r.session, r.epoch, r.unit, r.z_video, r.z_audio) for _, r in solved]
        for (future, result), shown in zip(solved, self._renderer.render(jobs), strict=True):
            _resolve(future, _with_render(result, shown) if isinstance(shown, RenderResult) else shown)
        for job, _ in outcomes:
            del self._futures[job_key(job)]

    def _abandon(self, error: SessionError) -> None:
        self._performer.clear()
        futures, self._futures = self._futures, {}
        for future in futures.values():
            _resolve(future, error)


def _with_render(solved: PerformResult, shown: RenderResult) -> PerformResult:
    return replace(solved, pcm=shown.pcm, frames=shown.frames, ms={**solved.ms, **shown.ms})


def _resolve(future: Future[Any], result: object) -> None:
    if future.done():
        return
    if isinstance(result, SessionError):
        future.set_exception(result)
    else:
        future.set_result(result)


def _fail(items: Sequence[Item], error: SessionError) -> None:
    for _, future in items:
        _resolve(future, error)
