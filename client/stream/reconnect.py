"""Policy: which losses of a session's connection are mended, how often that is tried, and for how long.

A server keeps a session that was started with {"resume": true} for a grace time after its stream is lost, and lets a
new stream take it over. The unit that was being said is no longer of use by then: what falls into an outage is not
sent again, and the conversation goes on with the unit that is due when the server is back.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from .errors import DuplexError

GRACE_SHARE = 0.8  # of the grace time; the rest is for the server to notice, and for the unit that resumes
RESUME_ANYWHERE = -1  # unit_index of the first unit on a new stream: the server knows which one it lacks
# What gRPC says of a connection that broke: refused, reset or closed; cut between two messages; cut within one; reset
# by a proxy that goes away. DEADLINE_EXCEEDED is our own word for an answer that is overdue: a network that is gone
# without a word (a laptop out of reach, an address that has changed) shows in nothing else.
_BROKEN = ("UNAVAILABLE", "UNKNOWN", "INTERNAL", "CANCELLED", "DEADLINE_EXCEEDED")

Result = TypeVar("Result")


def startable(error: DuplexError) -> bool:
    """Whether a start that failed with this may succeed a moment later, or on another server."""
    full_or_leaving = error.code in ("RESOURCE_EXHAUSTED", "UNAVAILABLE")
    return full_or_leaving or (resumable(error) and error.code != "DEADLINE_EXCEEDED")


def gone(error: DuplexError) -> bool:
    """Whether the session is over and its client is not to blame: its server has died, was drained, or forgot it."""
    return error.code in ("UNAVAILABLE", "NOT_FOUND")


def resumable(error: DuplexError) -> bool:
    """Whether the session may be alive behind this error: the way to the server broke. What the server itself says, a
    refusal or the end of the session, stands."""
    return error.broken and error.code in _BROKEN


@dataclass(frozen=True)
class Reconnect:
    """How long and how often it is tried. Times in seconds.

    budget: from the last sign of life on, but no more than four fifths of the server's grace time.
    first, longest: of the pauses between tries, which double.  attempt: what one try may take.
    starts: how often a session is asked for that is refused because a server is full or going away; a balancer may
    find another one.  anew: a session that is lost with its server begins again elsewhere, with the same options and
    without its history.
    """

    budget: float = 24.0
    first: float = 0.1
    longest: float = 1.0
    attempt: float = 2.0
    starts: int = 3
    anew: bool = False

    def __post_init__(self) -> None:
        for name in ("budget", "first", "longest", "attempt"):
            if not getattr(self, name) > 0:
                raise ValueError(f"reconnect.{name}: expected more than 0 seconds, got {getattr(self, name)}")
        if self.starts < 1:
            raise ValueError(f"reconnect.starts: expected at least 1, got {self.starts}")

    def end(self, began: float, grace: float) -> float:
        """When an outage is given up that began at `began`. grace: seconds for which the server keeps the session."""
        return began + min(self.budget, GRACE_SHARE * grace)

    def pauses(self, jitter: Callable[[], float] = random.random) -> Iterator[float]:
        """The pause before each try: none before the first. Each is up to a half shorter by chance, or all users of a
        server that comes back would come at once."""
        yield 0.0
        pause = self.first
        while True:
            yield pause * (1 - jitter() / 2)
            pause = min(2 * pause, self.longest)

    async def until_back(
        self,
        attempt: Callable[[float], Awaitable[Result]],
        outage: Outage,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> Result:
        """What `attempt` (called with the seconds it may take) returns when it succeeds.

        Raises DuplexError: UNAVAILABLE when the outage lasts too long, or what is not `resumable`.
        """
        tries, reason = 0, outage.reason
        for pause in self.pauses(jitter):
            await sleep(max(0.0, min(pause, outage.end - clock())))
            left = outage.end - clock()
            if left <= 0:
                break
            tries += 1
            try:
                return await attempt(min(self.attempt, left))
            except DuplexError as error:
                if not resumable(error):
                    raise
                reason = error.message
        raise DuplexError(
            "UNAVAILABLE",
            f"the connection was lost, and not back after {clock() - outage.began:.1f} s and {tries} tries ({reason}); "
            "a server keeps a lost session for a short time only: start a new one",
        )


@dataclass(frozen=True)
class Resumed:
    """A session that goes on after an outage.

    unit: the first one of the new stream.  seconds: since the last sign of life.  lost: units that were sent and whose
    answers were lost.  skipped: units that were never sent, for they were too old when the server was back.
    anew: it is another session, with the same options: what was said before stayed behind.
    """

    unit: int
    seconds: float
    lost: int
    skipped: int
    anew: bool = False

    def __str__(self) -> str:
        count = self.lost + self.skipped
        units = "1 unit" if count == 1 else f"{count} units"
        if self.anew:
            said = f"a new session after {self.seconds:.1f} s ({units} lost)"
            return f"{said}: the model does not remember what was said before"
        return f"connection lost, resumed after {self.seconds:.1f} s ({units} lost)"


@dataclass
class Outage:
    """From the last sign of life on the old stream until the first answer on a new one.

    began, end: when it began, and when it is given up (time.monotonic()).  reason: what broke the stream first.
    anew: the session is lost, and another one is to begin.
    """

    began: float
    end: float
    reason: str
    lost: int = 0
    skipped: int = 0
    anew: bool = False
    _typed: list[tuple[int, str]] = field(default_factory=list)

    def lose(self, unit: int, text: str) -> None:
        """A unit that was sent and not answered. unit: its number at the server, where that is known, else -1."""
        self.lost += 1
        if text and unit >= 0:
            self._typed.append((unit, text))

    def unheard(self, expected: int) -> list[str]:
        """What was typed in lost units that never came to the server, which expected `expected` next; once."""
        typed, self._typed = self._typed, []
        return [text for unit, text in typed if unit >= expected]
