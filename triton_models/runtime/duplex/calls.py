"""The loop's calls into the two models: counted, timed and traced, so that one that hangs is found."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from .conversation import Conversation
from .tracing import Tracer

Call = Callable[[Any], Any]


class Over(Exception):
    """The session has ended under its unit: nobody waits for the rest."""


class Calls:
    """Calls that are under way. `lock` is that of the whole loop, never held over a call."""

    def __init__(self, lock: AbstractContextManager[Any], clock: Callable[[], int], tracer: Tracer | None) -> None:
        self._lock, self._clock, self._tracer = lock, clock, tracer
        self._open: dict[object, tuple[float, str, Conversation]] = {}  # since when, what, for whom

    def make(self, talk: Conversation, call: Call, job: object) -> Any:
        """The result of `call(job)`. Raises Over if the session has ended, before or meanwhile, and what it raises."""
        begin = self._clock() if self._tracer else 0
        token, what = object(), type(job).__name__.removesuffix("Job").lower()
        with self._lock:
            if talk.over:
                raise Over
            talk.calls += 1
            self._open[token] = time.monotonic(), what, talk
        try:
            result = call(job)
        finally:
            with self._lock:
                talk.calls -= 1
                del self._open[token]
                if talk.over:
                    talk.changed.notify_all()
        if talk.over:
            raise Over
        if self._tracer:
            with self._lock:
                self._tracer.hop(job, result, begin, self._clock())
        return result

    def close(self, talk: Conversation, what: str, call: Call, job: object) -> None:
        """Like `make`, for a session that has ended."""
        token = object()
        with self._lock:
            self._open[token] = time.monotonic(), what, talk
        try:
            call(job)
        finally:
            with self._lock:
                del self._open[token]

    def stalled(self, seconds: float) -> list[tuple[Conversation, str]]:
        """Sessions whose call has been under way for longer, and what it is. Hold the lock."""
        since = time.monotonic() - seconds
        return [(talk, what) for begun, what, talk in self._open.values() if begun < since]

    def oldest_seconds(self) -> float:
        """For how long the oldest call has been under way; 0 if there is none. Hold the lock."""
        since = min((begun for begun, _, _ in self._open.values()), default=None)
        return 0.0 if since is None else round(time.monotonic() - since, 3)
