"""Threads that take pieces of work from one queue, in the order in which they came.

What `ThreadPoolExecutor` does, but for the future that it makes for each piece: nobody looks at one here, and making it
stands between a unit and its first engine call (0.1 ms a unit, with cold caches).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

_log = logging.getLogger(__name__)


class Crew:
    """Up to `limit` threads, made when they are needed. More work than that waits for one."""

    def __init__(self, limit: int, name: str) -> None:
        self._limit, self._name = limit, name
        self._queue: SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._idle = 0  # threads that nothing in the queue is meant for
        self._waiting = 0  # pieces of work in the queue that no thread is meant for
        self._stopped = False

    def submit(self, work: Callable[..., None], *args: Any) -> None:
        """Runs `work(*args)` in one of the threads; after `stop` it does nothing. The callers bound the queue."""
        with self._lock:
            if self._stopped:
                return
            if self._idle:
                self._idle -= 1
            elif self._threads < self._limit:
                self._threads += 1
                threading.Thread(target=self._run, name=f"{self._name}-{self._threads}", daemon=True).start()
            else:
                self._waiting += 1
        self._queue.put((work, args))

    def stop(self) -> None:
        """Lets go of threads that have no work; the others end with what they are doing. What waits is not done."""
        with self._lock:
            self._stopped = True
            threads = self._threads
        for _ in range(threads):
            self._queue.put(None)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None and not self._stopped:
            work, args = item
            try:
                work(*args)
            except Exception:
                _log.exception("a piece of work of the %s threads failed", self._name)
            del item, work, args  # or its last work would live as long as the thread waits
            with self._lock:
                if self._waiting:
                    self._waiting -= 1
                else:
                    self._idle += 1
