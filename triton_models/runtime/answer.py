"""What becomes of a job, for callers that are called back. A Future can be waited for, which costs a unit 0.05 ms."""

from __future__ import annotations

import logging
from collections.abc import Callable

_log = logging.getLogger(__name__)


class Answer:
    """The part of a `concurrent.futures.Future` that a worker needs of it; `tell` gets the result or the exception."""

    __slots__ = ("_done", "_tell")

    def __init__(self, tell: Callable[[object], None]) -> None:
        self._tell = tell
        self._done = False

    def done(self) -> bool:
        return self._done

    def set_running_or_notify_cancel(self) -> bool:
        """Nobody can cancel it."""
        return True

    def set_result(self, result: object) -> None:
        self._done = True
        try:
            self._tell(result)
        except Exception:
            _log.exception("an answer could not be told")

    def set_exception(self, error: BaseException) -> None:
        self.set_result(error)
