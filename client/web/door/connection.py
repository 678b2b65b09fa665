"""The socket of one client: a pump that sends what waits, a reader that never runs ahead, and clean ways out."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import Protocol

from aiohttp import WSMsgType, web

from ..call.call import Call
from ..call.call_book import CallBook
from ..call.outbox import CLOSE_CODES, Outbox
from ..rates import Bucket
from .desk import DESK

STALL_SECONDS = 10.0  # a client that takes nothing for so long is cut off; its conversation waits for it
HEARTBEAT_SECONDS = 15.0
CLOSE_SECONDS = 2.0
SEND_BUFFER = 128 << 10  # bytes in the kernel: more would be delay that no queue here could shed
WRITE_BUFFER = 64 << 10  # bytes in the process
EVENTS_PER_SECOND, EVENT_BURST = 400.0, 1500.0  # read from one client; ten times what a microphone sends
CALM_EVENTS = 75.0  # a second, and at once: a microphone's and a camera's, which wait for no neighbour
EVENT_BYTES = {WSMsgType.TEXT: 8 << 10, WSMsgType.BINARY: 32 << 10}  # a message counts once more for so many bytes

CLOSE_UNREADABLE = 1007
CLOSE_REFUSED = 1008
CLOSE_BUSY = 1013


class Reader(Protocol):
    """Takes what the client says. Raises ValueError only for what cannot be a message of the protocol at all."""

    async def on_text(self, data: str) -> None: ...

    async def on_binary(self, data: bytes) -> None: ...


class Connection:
    """One WebSocket. It may change the conversation it belongs to (`adopt`) when the client resumes an earlier one."""

    def __init__(self, ws: web.WebSocketResponse, request: web.Request, book: CallBook) -> None:
        self.ws = ws
        self.call: Call | None = None
        self.reader: Reader | None = None
        self._request = request
        self._book = book
        self._outbox: Outbox | None = None
        self._pump: asyncio.Task[tuple[int, str] | None] | None = None

    @classmethod
    async def open(
        cls, request: web.Request, book: CallBook, *, protocols: tuple[str, ...], max_bytes: int
    ) -> Connection:
        """Answers the upgrade request. max_bytes: of one message; a larger one closes the socket (1009), unread."""
        ws = web.WebSocketResponse(
            protocols=protocols,
            heartbeat=HEARTBEAT_SECONDS,
            max_msg_size=max_bytes,
            compress=False,
            timeout=CLOSE_SECONDS,
            writer_limit=WRITE_BUFFER,
        )
        await ws.prepare(request)
        if request.transport is not None:
            request.transport.set_write_buffer_limits(high=WRITE_BUFFER)  # pyright: ignore[reportAttributeAccessIssue]
            raw = request.transport.get_extra_info("socket")
            with contextlib.suppress(OSError, AttributeError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        return cls(ws, request, book)

    def adopt(self, call: Call, reader: Reader, outbox: Outbox, greeting: str | None = None) -> None:
        """From here on this socket is the client of `call`. greeting: goes out before anything else."""
        if self._pump is not None:
            self._pump.cancel()
        if self.call is not None and self._outbox is not None and self.call is not call:
            self._book.leave(self.call, self._outbox)
        self.call, self.reader, self._outbox = call, reader, outbox
        self._pump = asyncio.create_task(self._send(outbox, greeting))

    async def first(self, seconds: float) -> str | None:
        """The client's first message, which must be text and come in time; None otherwise."""
        try:
            message = await self.ws.receive(timeout=seconds)
        except TimeoutError:
            return None
        return message.data if message.type is WSMsgType.TEXT else None

    async def run(self) -> None:
        """Serves the client until it leaves or its conversation is over."""
        reading = asyncio.create_task(self._read())
        goodbye: tuple[int, str] | None = None
        try:
            while not reading.done():
                pump = self._pump
                await asyncio.wait({reading, pump} if pump is not None else {reading}, return_when="FIRST_COMPLETED")
                if reading.done():
                    goodbye = reading.result()
                elif pump is not None and pump is self._pump:
                    goodbye = pump.result()
                    break
        finally:
            tasks = [task for task in (reading, self._pump) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self.call is not None and self._outbox is not None:
                self._book.leave(self.call, self._outbox)
        if goodbye is not None:
            await self.close(*goodbye)

    async def close(self, code: int, reason: str) -> None:
        """Says goodbye and waits for the answer; a client that gives none is cut off."""
        try:
            async with asyncio.timeout(2 * CLOSE_SECONDS):
                await self.ws.close(code=code, message=reason.encode()[:120])
        except (TimeoutError, ConnectionError, RuntimeError):
            self._abort()

    async def _read(self) -> tuple[int, str] | None:
        """Hands on what the client says; returns how to close the socket if it is not closed already.

        One that floods it, by itself or with others of its peer, is read more slowly, and others have their turn
        between any two messages.
        """
        desk = self._request.app[DESK]
        peer = desk.peer(self._request)
        calm, budget = Bucket(CALM_EVENTS, CALM_EVENTS), Bucket(EVENTS_PER_SECOND, EVENT_BURST)
        async for message in self.ws:
            if self.reader is None or self.call is None:
                break
            cost = 1 + (len(message.data) / EVENT_BYTES[message.type] if message.type in EVENT_BYTES else 0)
            own, shared = budget.charge(cost), desk.charge_events(peer, cost)
            await asyncio.sleep(own if calm.take(cost) else max(own, shared))
            self.call.heard_at = time.monotonic()
            try:
                if message.type is WSMsgType.TEXT:
                    await self.reader.on_text(message.data)
                elif message.type is WSMsgType.BINARY:
                    await self.reader.on_binary(message.data)
            except ValueError as error:
                return CLOSE_UNREADABLE, str(error)
        return None

    async def _send(self, outbox: Outbox, greeting: str | None) -> tuple[int, str] | None:
        """Sends what waits; returns how to close the socket, or None when it is gone."""
        try:
            if greeting is not None:
                await self.ws.send_str(greeting)
            while (message := await outbox.get()) is not None:
                async with asyncio.timeout(STALL_SECONDS):
                    if isinstance(message.data, str):
                        await self.ws.send_str(message.data)
                    else:
                        await self.ws.send_bytes(message.data)
        except (TimeoutError, ConnectionError, RuntimeError):
            self._abort()
            return None
        why = outbox.closed or "ended"
        return CLOSE_CODES[why], why

    def _abort(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()  # pyright: ignore[reportAttributeAccessIssue]
