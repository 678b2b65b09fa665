"""Units of a session on their way: sent and not yet answered (`Flight`), answered and not yet taken (`Inbox`)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from .errors import DuplexError
from .units import UnitResponse

RECEIVE_QUEUE = 32  # units; a consumer may pause for five seconds before the server feels it


class Owed(NamedTuple):
    """A unit that was sent and is not answered. number: its index at the server, -1 where only the server knows it.
    at: when it was sent (time.monotonic()).  text: what was typed in it."""

    index: int
    number: int
    at: float
    text: str


class Flight:
    """At most `limit` units are under way, and none is sent while the gate is closed. Answers come in order."""

    def __init__(self, limit: int) -> None:
        self._room = asyncio.Semaphore(limit)
        self._gate = asyncio.Event()
        self._gate.set()
        self._written = asyncio.Event()  # no unit is on its way to gRPC
        self._written.set()
        self._owed: deque[Owed] = deque()  # oldest first

    def __len__(self) -> int:
        return len(self._owed)

    @property
    def oldest(self) -> float | None:
        """When the oldest unit that is under way was sent."""
        return self._owed[0].at if self._owed else None

    # -- the sender --------------------------------------------------------------------------------------------
    async def turn(self) -> None:
        """Waits until one more unit may be sent; then call `begin` or `give_back`."""
        await self._room.acquire()
        try:
            while not self._gate.is_set():
                await self._gate.wait()
        except BaseException:
            self._room.release()
            raise

    def give_back(self) -> None:
        """The turn is not used: it is for the next one who waits."""
        self._room.release()

    def begin(self, unit: Owed, *, alone: bool = False) -> None:
        """The unit is on its way to gRPC. alone: none goes after it until the gate is opened."""
        self._owed.append(unit)
        self._written.clear()
        if alone:
            self._gate.clear()

    def written(self) -> None:
        self._written.set()

    # -- the reader --------------------------------------------------------------------------------------------
    async def settle(self) -> None:
        """Waits until no unit is on its way to gRPC: an answer may be quicker than the return of its sender."""
        await self._written.wait()

    def land(self) -> Owed | None:
        """The oldest unit is answered; None if none was under way."""
        if not self._owed:
            return None
        self._room.release()
        return self._owed.popleft()

    def crash(self) -> Iterator[Owed]:
        """Each unit that is under way, which will not be answered any more."""
        while (unit := self.land()) is not None:
            yield unit

    def close_gate(self) -> None:
        self._gate.clear()

    def open_gate(self) -> None:
        self._gate.set()

    def end(self) -> None:
        """Nobody waits any longer, for the session is over."""
        self._room.release()
        self._gate.set()


class Inbox:
    """Responses and errors in order; None, or an error that is fatal, is the last one."""

    def __init__(self) -> None:
        self._items: asyncio.Queue[UnitResponse | DuplexError | None] = asyncio.Queue(RECEIVE_QUEUE)
        self._finished = False

    async def put(self, item: UnitResponse | DuplexError | None) -> None:
        """Waits for a consumer that pauses."""
        await self._items.put(item)

    async def next(self) -> UnitResponse:
        """The next response. Raises DuplexError, and StopAsyncIteration after the end."""
        if self._finished:
            raise StopAsyncIteration
        item = await self._items.get()
        if item is None:
            self._finished = True
            raise StopAsyncIteration
        if isinstance(item, DuplexError):
            self._finished = item.fatal
            raise item
        return item

    def close(self, failure: DuplexError) -> None:
        """Drops what waits; a consumer in another task wakes up with `failure`."""
        if not self._finished:
            while not self._items.empty():
                self._items.get_nowait()
            self._items.put_nowait(failure)
