"""The launcher's HTTP: GET /ready is 200 or 503, with the reason and the models' figures as JSON; GET /live is 200
while the launcher lives; GET /metrics is for Prometheus. On a port of its own, whoever connects is told the room in
a line of HAProxy's agent-check protocol.

Probes and scrapers are few and quick. So connections are few and short: whoever opens many and says nothing takes
neither threads nor descriptors from the launcher, nor its answer from the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus

from prometheus_client import CONTENT_TYPE_LATEST

from .health import Readiness

MAX_CONNECTIONS = 32  # one more ends the one that is open longest
REQUEST_SECONDS = 2.0  # from the connection to the last byte of the answer
MAX_HEAD = 8_192  # bytes

Answer = Callable[[asyncio.StreamReader], Awaitable[bytes]]


class HealthServer:
    """Answers on `listener` and `agent`, bound TCP sockets, from a thread of its own."""

    def __init__(self, readiness: Readiness, listener: socket.socket, agent: socket.socket | None = None) -> None:
        self.port: int = listener.getsockname()[1]
        self._readiness = readiness
        self._listeners = {listener: self._ask} | ({agent: self._tell} if agent is not None else {})
        self._open: dict[asyncio.Task[None] | None, None] = {}  # the oldest first
        for each in self._listeners:
            each.listen()
        self._ended = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        running = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(running)), name="health", daemon=True)
        self._thread.start()
        running.wait()

    def stop(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(2.0)
        for each in self._listeners:
            each.close()

    async def _serve(self, running: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        async with contextlib.AsyncExitStack() as servers:
            for listener, answer in self._listeners.items():
                talk = partial(self._talk, answer)
                await servers.enter_async_context(await asyncio.start_server(talk, sock=listener, limit=MAX_HEAD))
            running.set()
            await self._ended.wait()

    async def _talk(self, answer: Answer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if len(self._open) >= MAX_CONNECTIONS and (oldest := next(iter(self._open))) is not None:
            del self._open[oldest]
            oldest.cancel()
        self._open[task] = None
        writer.transport.set_write_buffer_limits(0)  # drain waits until the kernel has all of it
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                writer.write(await answer(reader))
                await writer.drain()
        except (OSError, TimeoutError, EOFError, asyncio.LimitOverrunError, asyncio.CancelledError):
            writer.transport.abort()  # a cancelled task would be a traceback in the log, one a silent connection
        finally:
            self._open.pop(task, None)
            with contextlib.suppress(OSError):
                writer.close()

    async def _tell(self, _: asyncio.StreamReader) -> bytes:
        return self._readiness.agent()

    async def _ask(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        method, path, *_ = [*head.split(b" ", 2), b""]
        status, kind = HTTPStatus.OK, "application/json"
        if method != b"GET":
            status, kind, body = HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", b"expected GET"
        elif path == b"/metrics":
            kind, body = CONTENT_TYPE_LATEST, self._readiness.metrics()
        elif path in (b"/ready", b"/live"):
            body = self._readiness.body()
            if path == b"/ready" and not self._readiness.ready:
                status = HTTPStatus.SERVICE_UNAVAILABLE
        else:
            status, kind, body = HTTPStatus.NOT_FOUND, "text/plain", b"expected /ready, /live or /metrics"
        lines = (
            f"HTTP/1.1 {status.value} {status.phrase}",
            f"Content-Type: {kind}",
            f"Content-Length: {len(body)}",
            "Connection: close",
        )
        return "\r\n".join((*lines, "", "")).encode() + body
