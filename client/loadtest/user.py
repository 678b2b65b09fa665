"""One user of a load test: an open-loop sender, whose units are due when they are due, and a log of what came back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..stream.client import DuplexClient, DuplexSession
from ..stream.errors import DuplexError
from ..stream.pacing import Pacer
from ..stream.reconnect import Reconnect, Resumed
from ..stream.units import UNIT_MS, UNIT_SECONDS, UnitResponse
from .media import Media


@dataclass(slots=True)
class UnitLog:
    """One unit. Times are `time.monotonic()` seconds.

    woke: when the driver turned to it; driver_ms: how much later that was than it could have been, which is when the
    unit was due and the one before it was gone.
    """

    index: int
    due: float
    woke: float
    driver_ms: float = 0.0
    sent: float | None = None
    received: float | None = None
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def response_ms(self) -> float | None:
        """From the moment the unit was complete, not from the moment it could be sent: no coordinated omission."""
        return None if self.received is None else (self.received - self.due) * 1e3

    @property
    def service_ms(self) -> float | None:
        """From the moment it was sent; what a closed-loop tool would report."""
        return None if self.received is None or self.sent is None else (self.received - self.sent) * 1e3

    @property
    def on_time(self) -> bool:
        return self.response_ms is not None and self.response_ms <= UNIT_MS

    @property
    def stages(self) -> dict[str, float]:
        """Milliseconds by stage, as the server measured them."""
        return self.info.get("ms") or {}

    @property
    def degradation(self) -> list[str]:
        return self.info.get("degradation") or []


@dataclass
class UserLog:
    """Everything about one user. `planned`: units that were due until the end of the run, sent or not."""

    number: int
    start: float
    planned: int
    units: list[UnitLog] = field(default_factory=list)
    error: DuplexError | None = None

    def answered(self) -> list[UnitLog]:
        return [unit for unit in self.units if unit.received is not None]

    @property
    def first_response_ms(self) -> float | None:
        return self.units[0].response_ms if self.units else None

    def stopped(self, at: float) -> None:
        """The run ended early: what was not due by then was not planned."""
        self.planned = min(self.planned, max(len(self.units), int((at - self.start) / UNIT_SECONDS)))


async def talk(
    client: DuplexClient,
    log: UserLog,
    media: Media,
    *,
    options: Mapping[str, Any],
    stop: asyncio.Event,
    timeout: float = 10.0,
    reconnect: bool | Reconnect = False,
    on_resume: Callable[[Resumed], None] | None = None,
) -> None:
    """Talks for `log.planned` units from `log.start` on and fills the log; errors of the session end up there, too.

    stop: set it and the user leaves without a word.  reconnect, on_resume: as of `DuplexClient.session`; a measurement
    of one server does without.
    """
    async with client.session(options=options, timeout=timeout, reconnect=reconnect, on_resume=on_resume) as session:
        others = asyncio.create_task(_send(session, log, media)), asyncio.create_task(_leave(session, stop))
        try:
            async for response in session:
                _book(log, response)
        except DuplexError as error:
            log.error = None if stop.is_set() else error
        finally:
            for task in others:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, DuplexError):
                    await task


async def _send(session: DuplexSession, log: UserLog, media: Media) -> None:
    pacer = Pacer()
    pacer.start = log.start
    try:
        for index in range(log.planned):
            unit = media.unit(log.number, index, end=index == log.planned - 1)
            free = time.monotonic()
            await pacer.wait(index)
            woke, due = time.monotonic(), pacer.due(index)
            record = UnitLog(index, due, woke, (woke - max(due, free)) * 1e3)
            log.units.append(record)
            record.sent = await session.send(unit)
    except Exception as error:
        if not isinstance(error, DuplexError):  # that the reader tells, after what came before it
            await session.close()
        raise


async def _leave(session: DuplexSession, stop: asyncio.Event) -> None:
    await stop.wait()
    await session.close()


def _book(log: UserLog, response: UnitResponse) -> None:
    if response.unit_index >= len(log.units):
        raise DuplexError("INTERNAL", f"unit_index: the server answered unit {response.unit_index}, never sent")
    if response.lost:  # as if it had not been answered, which it was not
        return
    record = log.units[response.unit_index]
    record.received, record.info = response.received, response.info
