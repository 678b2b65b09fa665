"""The ways in: a session per WebSocket, sidebands beside it, and an answer to what is not to be had here."""

from __future__ import annotations

import json

from aiohttp import web

from client.stream import DuplexError

from ..call.call_book import BookFull
from ..door.access import API_KEY_PROTOCOL, Refused
from ..door.connection import CLOSE_BUSY, Connection
from ..door.desk import DESK
from ..events import EventError
from .commands import LiveCommands
from .session import LiveSession

MAX_MESSAGE = 4 << 20  # bytes
BACKLOG_SECONDS = 2.0  # of a microphone may wait; the model lives in the present, older sound is dropped
_REFUSED = {
    "fork": "sessions are not stored, and what a session remembers (its K/V) cannot be copied; start a new one",
    "content": "sessions are not recorded",
    "accept": "there is no SIP here",
    "refer": "there is no SIP here",
    "reject": "there is no SIP here",
}


async def live_socket(request: web.Request) -> web.StreamResponse:
    """Serves the primary WebSocket of a session; the session ends with it."""
    desk = request.app[DESK]
    desk.check(request, (API_KEY_PROTOCOL,))
    connection = await Connection.open(request, desk.book, protocols=("realtime",), max_bytes=MAX_MESSAGE)
    try:
        call = await desk.new_call(live=True, limit_seconds=BACKLOG_SECONDS, resumable=False)
    except DuplexError as error:
        code = "rate_limit_exceeded" if isinstance(error, BookFull) else error.code.lower()
        body = {"type": "server_error", "code": code, "message": error.message}
        await connection.ws.send_str(json.dumps({"type": "error", "event_id": "event_0", "error": body}))
        await connection.close(CLOSE_BUSY, code)
        return connection.ws
    session = LiveSession(call, desk.upstream.model)
    call.dialect = session
    outbox, _ = call.attach()
    connection.adopt(call, LiveCommands(session, sideband=False), outbox)
    await connection.run()
    return connection.ws


async def live_attach(request: web.Request) -> web.StreamResponse:
    """Serves a sideband: it hears both sides, gets every event and may steer; leaving it changes nothing."""
    session = _find(request)
    try:
        outbox = session.watch()
    except EventError as error:
        raise Refused(429, error.message) from None
    try:
        desk = request.app[DESK]
        connection = await Connection.open(request, desk.book, protocols=("realtime",), max_bytes=MAX_MESSAGE)
        connection.adopt(session.call, LiveCommands(session, sideband=True), outbox)
        await connection.run()
    finally:
        session.unwatch(outbox)
    return connection.ws


async def live_hangup(request: web.Request) -> web.Response:
    """Ends a session from outside."""
    _find(request).close(None)
    return web.json_response({})


async def live_refuse(request: web.Request) -> web.Response:
    request.app[DESK].check(request, (API_KEY_PROTOCOL,))
    verb = request.match_info["verb"]
    raise Refused(400, f"{verb}: {_REFUSED[verb]}")


def _find(request: web.Request) -> LiveSession:
    desk = request.app[DESK]
    desk.check(request, (API_KEY_PROTOCOL,))
    call = desk.book.find(request.match_info["id"])
    if call is None or not isinstance(call.dialect, LiveSession):
        raise Refused(404, "session_id: that session has ended or never was")
    return call.dialect
