"""The real-time clock of a conversation that is read from files.

A microphone hands over unit k when its last sample has been taken: at start + (k + 1) * 160 ms. Units from a file are
held back until that moment, so that the server sees the load and the lateness of a live user. The schedule never
slips: a unit that goes out late does not move the due time of the next one (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from client.units import UNIT_SECONDS


class Pacer:
    """Due times of units in seconds of `clock` (time.monotonic by default)."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self.start: float | None = None

    def due(self, unit: int) -> float:
        """The moment at which user unit `unit` is complete."""
        if self.start is None:
            raise RuntimeError("the pacer has not started: wait() starts it")
        return self.start + (unit + 1) * UNIT_SECONDS

    def deadline(self, unit: int) -> float:
        """The moment at which the response to `unit` stops being on time: the next unit is complete."""
        return self.due(unit + 1)

    async def wait(self, unit: int) -> float:
        """Sleeps until unit `unit` is complete; the first call starts the clock. Returns the lateness in seconds."""
        if self.start is None:
            self.start = self._clock()
        while (left := self.due(unit) - self._clock()) > 0:
            await self._sleep(left)
        return self._clock() - self.due(unit)
