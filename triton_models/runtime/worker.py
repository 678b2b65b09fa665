"""A thread that owns a Thinker or a Performer. Jobs go in from any thread, futures come back.

    submit() --> bounded queue --> one round: batched engine calls --> futures

A round that crashes fails its own jobs and not the thread. CloseJobs are taken even when the queue is full: refusing
one would leak the pages of its session.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from .messages import CloseJob, Job, SessionError

Item = tuple[Job, Future[Any]]

IDLE_SECONDS = 1.0  # an idle thread looks after its invariants this often

_log = logging.getLogger(__name__)


class Worker(ABC):
    """A thread with a bounded queue; what it owns is touched by this thread alone. Subclasses say what a round does."""

    def __init__(self, name: str, capacity: int) -> None:
        self.name = name
        self._capacity = capacity
        self._queue: deque[Item] = deque()
        self._ready = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, job: Job) -> Future[Any]:
        """Queues a job. Its future ends in the result or in a SessionError, also if the queue is full or has ended."""
        future: Future[Any] = Future()
        error = None
        with self._ready:
            if self._stopping:
                error = SessionError("UNAVAILABLE", f"the {self.name} is shutting down")
            elif len(self._queue) >= self._capacity and not isinstance(job, CloseJob):
                error = SessionError(
                    "RESOURCE_EXHAUSTED", f"the {self.name} has {len(self._queue)} jobs queued already"
                )
            else:
                self._queue.append((job, future))
                self._ready.notify()
        if error is not None:
            future.set_exception(error)
        return future

    def stop(self, timeout: float = 10.0) -> None:
        """Ends the thread after the round it is in and fails everything that is pending with UNAVAILABLE."""
        with self._ready:
            self._stopping = True
            self._ready.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    # -- what subclasses say -----------------------------------------------------------------------------------
    @abstractmethod
    def _round(self, items: Sequence[Item]) -> None:
        """Serves the jobs that arrived and resolves futures as results come."""

    @abstractmethod
    def _wait_seconds(self) -> float | None:
        """How long to wait for another job: 0 if there is work at hand, None if there is nothing to do without one."""

    @abstractmethod
    def _abandon(self, error: SessionError) -> None:
        """Fails and forgets every job that is under way."""

    @abstractmethod
    def _idle(self) -> None:
        """Called now and then while there is nothing to do."""

    # -- the thread --------------------------------------------------------------------------------------------
    def _loop(self) -> None:
        while (items := self._collect()) is not None:
            try:
                if items or self._wait_seconds() is not None:
                    self._round(items)
                else:
                    self._idle()
            except Exception as error:
                _log.exception("a round of the %s crashed", self.name)
                failure = self._failure(error)
                self._abandon(failure)
                fail_items(items, failure)
        failure = SessionError("UNAVAILABLE", f"the {self.name} is shutting down")
        self._abandon(failure)
        with self._ready:
            left = list(self._queue)
            self._queue.clear()
        fail_items(left, failure)

    def _failure(self, error: Exception) -> SessionError:
        return SessionError("INTERNAL", f"the {self.name} failed: {error}")

    def _collect(self) -> list[Item] | None:
        """The jobs of the next round, perhaps none; None when the worker stops."""
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


def resolve(future: Future[Any], result: object) -> None:
    """Ends a future, unless it has ended, in a result or in a SessionError."""
    if future.done():
        return
    if isinstance(result, SessionError):
        future.set_exception(result)
    else:
        future.set_result(result)


def fail_items(items: Sequence[Item], error: SessionError) -> None:
    for _, future in items:
        resolve(future, error)
