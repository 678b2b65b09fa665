"""The real-time clock of a conversation that is read from files.

A microphone hands over unit k when its last sample has been taken: at start + (k + 1) * 160 ms. Units from a file are
held back until that moment, so that the server sees the load and the lateness of a live user. The schedule never
slips: a unit that goes out late does not move the due time of the next one (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from .units import UNIT_SECONDS

MAKE_SECONDS = 0.1  # for reading and decoding one unit, which takes some milliseconds


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
        await self._until(self.due(unit))
        return self._clock() - self.due(unit)

    async def wait_to_make(self, unit: int) -> None:
        """Sleeps until unit `unit` is MAKE_SECONDS from being complete; returns at once before the clock has started.

        Reading it earlier would take a core from the server, where both share a machine, just when the unit before it
        has been sent: 0.3 ms of its answer's time.
        """
        if self.start is not None:
            await self._until(self.due(unit) - MAKE_SECONDS)

    async def _until(self, moment: float) -> None:
        while (left := moment - self._clock()) > 0:
            await self._sleep(left)
