"""`/v1/realtime`: opens a session per connection, in the spelling that the client asks for."""

from __future__ import annotations

import json

from aiohttp import web

from client.stream import DuplexError

from ..call.call import Call
from ..call.call_book import BookFull
from ..door.access import API_KEY_PROTOCOL
from ..door.connection import CLOSE_BUSY, Connection
from ..door.desk import DESK, Desk
from ..events import EventError
from .commands import Commands
from .session import RealtimeSession
from .wording import BETA, GA

BETA_PROTOCOL = "openai-beta.realtime-v1"
MAX_MESSAGE = 21 << 20  # bytes; base64 of the 15 MiB that the original takes in one event
AHEAD_SECONDS = 60.0  # of audio may be appended faster than real time


async def realtime_socket(request: web.Request) -> web.StreamResponse:
    """Serves one WebSocket of a Realtime client."""
    desk = request.app[DESK]
    desk.check(request, (API_KEY_PROTOCOL,))
    connection = await Connection.open(request, desk.book, protocols=("realtime", BETA_PROTOCOL), max_bytes=MAX_MESSAGE)
    beta = "realtime=v1" in request.headers.get("OpenAI-Beta", "") or BETA_PROTOCOL in request.headers.get(
        "Sec-WebSocket-Protocol", ""
    )
    try:
        call = await desk.new_call(live=False, limit_seconds=AHEAD_SECONDS)
    except DuplexError as error:
        code = "rate_limit_exceeded" if isinstance(error, BookFull) else error.code.lower()
        body = {"type": "server_error", "code": code, "message": error.message, "param": None, "event_id": None}
        await connection.ws.send_str(json.dumps({"type": "error", "event_id": "event_0", "error": body}))
        await connection.close(CLOSE_BUSY, code)
        return connection.ws
    session = RealtimeSession(call, BETA if beta else GA, desk.upstream.model, desk.book.grace)
    call.dialect = session
    outbox, _ = call.attach(after=0)
    connection.adopt(call, _commands(desk, connection, session), outbox)
    await connection.run()
    return connection.ws


def _commands(desk: Desk, connection: Connection, session: RealtimeSession) -> Commands:
    """The reader of `session`, which can move the connection to an earlier one."""

    async def resume(key: str, last: int) -> None:
        found: Call | None = desk.book.find(key)
        if found is None or not isinstance(found.dialect, RealtimeSession) or found is session.call:
            raise EventError("session_not_found", "session_id: that session has ended or never was", "session_id")
        old = found.dialect
        outbox, missed = desk.book.resume(found, last)
        connection.adopt(found, _commands(desk, connection, old), outbox)
        old.emit("session.resumed", session=old.show(), missed_events=missed)

    return Commands(session, resume)
