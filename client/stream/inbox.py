"""What a session's reader has for its consumer: a bounded queue, and the end of it."""

from __future__ import annotations

import asyncio

from client.stream.errors import DuplexError
from client.stream.units import UnitResponse

RECEIVE_QUEUE = 32  # units; a consumer may pause for five seconds before the server feels it


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
