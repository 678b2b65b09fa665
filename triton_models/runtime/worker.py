"""A thread that owns a Thinker or a Performer. Jobs go in from any thread or event loop, futures come back.

    submit() --> bounded queue --> one turn: batched engine calls --> futures

A turn that crashes fails its own jobs and not the thread. CloseJobs are taken even when the queue is full: refusing one
would leak the pages of its session.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from .answer import Answer
from .messages import CloseJob, HandOver, OpenJob, PerceiveJob, PerformJob, SessionError, ThinkJob

Job = OpenJob | PerceiveJob | ThinkJob | HandOver | PerformJob | CloseJob
Outcome = Future[Any] | Answer
Item = tuple[Job, Outcome]

IDLE_SECONDS = 1.0  # an idle thread looks after its invariants this often

_log = logging.getLogger(__name__)


class Worker(ABC):
    """A thread with a bounded queue. Subclasses say what a turn does; what they own belongs to whoever takes a turn."""

    rest_seconds = 0.0  # between the answer to a job that was alone, and the preparation of what comes next

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
        self._enqueue(job, future)
        return future

    def serve(self, job: Job, done: Callable[[object], None]) -> None:
        """Like `submit`, with `done` called at the end with the result or the SessionError. A job that is alone is done
        here and now: it keeps nobody waiting, and no thread has to wake up for it. Should another job come meanwhile,
        the thread takes over."""
        answer = Answer(done)
        if not self._turning.acquire(blocking=False):
            self._enqueue(job, answer)
            return
        left = False
        try:
            with self._ready:
                alone = not self._queue and not self._stopping and self._alone(job)
            if alone:
                self._guarded_turn([(job, answer)])
                while not (self._queue or self._waits) and self._wait_seconds() == 0:
                    self._guarded_turn([])
                left = self._wait_seconds() is not None
        finally:
            self._turning.release()
        if not alone:
            self._enqueue(job, answer)
        elif left:
            with self._ready:
                self._ready.notify()
        else:
            self._prepare_after_rest()

    def _prepare_after_rest(self) -> None:
        """`_prepare`, when the processes that carry the answer have had the cores to themselves for a moment."""
        if self.rest_seconds:
            time.sleep(self.rest_seconds)
        if self._turning.acquire(blocking=False):
            try:
                if not self._queue and self._wait_seconds() is None:
                    self._guarded(self._prepare)
            finally:
                self._turning.release()

    def _enqueue(self, job: Job, outcome: Outcome) -> None:
        error = None
        with self._ready:
            if self._stopping:
                error = SessionError("UNAVAILABLE", f"the {self.name} is shutting down")
            elif len(self._queue) >= self._capacity and not isinstance(job, CloseJob):
                error = SessionError(
                    "RESOURCE_EXHAUSTED", f"the {self.name} has {len(self._queue)} jobs queued already"
                )
            else:
                self._queue.append((job, outcome))
                self._ready.notify()
        if error is not None:
            outcome.set_exception(error)

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
    def _wait_seconds(self) -> float | None:
        """How long to wait for another job: 0 if there is work at hand, None if there is nothing to do without one."""

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
                if not self._queue and self._wait_seconds() != 0:
                    self._guarded(self._prepare)
        failure = SessionError("UNAVAILABLE", f"the {self.name} is shutting down")
        with self._turning:
            self._abandon(failure)
        with self._ready:
            left = list(self._queue)
            self._queue.clear()
        fail_items(left, failure)

    def _guarded_turn(self, items: list[Item]) -> None:
        try:
            if items or self._wait_seconds() is not None:
                self._turn(items)
            else:
                self._idle()
        except Exception as error:
            _log.exception("a turn of the %s crashed", self.name)
            failure = self._failure(error)
            self._abandon(failure)
            fail_items(items, failure)

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:
            _log.exception("the %s could not prepare the next turn", self.name)

    def _failure(self, error: Exception) -> SessionError:
        return SessionError("INTERNAL", f"the {self.name} failed: {error}")

    def _collect(self) -> list[Item] | None:
        """The jobs of the next turn, perhaps none; None when the worker stops."""
        with self._ready:
            wait = self._wait_seconds()
            if not self._queue and not self._stopping and wait != 0:
                self._ready.wait(IDLE_SECONDS if wait is None else wait)
            if self._stopping:
                return None
            items = list(self._queue)
            self._queue.clear()
        # A future that was cancelled while it was queued drops its job, but never a close.
        return [(j, f) for j, f in items if f.set_running_or_notify_cancel() or isinstance(j, CloseJob)]


def resolve(future: Outcome, result: object) -> None:
    """Ends a future, unless it has ended, in a result or in a SessionError."""
    if future.done():
        return
    if isinstance(result, SessionError):
        future.set_exception(result)
    else:
        future.set_result(result)


def fail_items(items: Sequence[Item], error: SessionError) -> None:
    fail_futures([future for _, future in items], error)


def fail_futures(futures: Sequence[Outcome], error: SessionError) -> None:
    for future in futures:
        resolve(future, error)
