"""The ways in: an SDP offer by HTTP, for the page, a Realtime call or a Live session.

No candidates trickle in afterwards: the answer has all of ours, and a client that could not name its own is found when
it sends its first check.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aioice.ice
from aiohttp import web

from client.stream import DuplexError

from ..call.call import Call
from ..call.outbox import Outbox
from ..door.access import Refused, is_loopback
from ..door.desk import DESK, Desk
from ..events import EventError
from ..live.commands import LiveCommands
from ..live.config import LiveConfig
from ..live.session import LiveSession
from ..media import Format
from ..page.socket import join, read_hello, welcome
from ..realtime.commands import Commands
from ..realtime.session import RealtimeSession
from ..realtime.wording import GA
from .peer import Peer, RtcReader

BACKLOG_SECONDS = 0.4  # of a microphone may wait
PEERS: web.AppKey[set[asyncio.Task[None]]] = web.AppKey("peers", set)
_every_address = aioice.ice.get_host_addresses


def offer_addresses(host: str) -> None:
    """Which of this machine's addresses are told to peers: all, or loopback alone, where only that can be reached.

    aioice has no setting for it, and leaves loopback out.
    """
    loopback = ["127.0.0.1"]
    aioice.ice.get_host_addresses = (lambda use_ipv4, use_ipv6: loopback) if is_loopback(host) else _every_address


async def page_call(request: web.Request) -> web.Response:
    """`POST /v1/session/calls`: {"sdp": offer, "hello": ...}; the page may go on with the session by either way."""
    desk = request.app[DESK]
    desk.check(request)
    body = _json(await request.text(), "body")
    try:
        hello = read_hello(json.dumps(body.get("hello")))
        call, session, outbox, missed = await join(desk, hello)
    except ValueError as error:
        raise Refused(400, str(error)) from None
    except DuplexError as error:
        return web.json_response({"error": {"code": error.code, "message": error.message}}, status=503)
    greeting = welcome(desk, call, session, missed)
    answer = await _connect(request, call, session, str(body.get("sdp")), outbox, greeting)
    return web.json_response({"session": call.key, "sdp": answer}, status=201)


async def realtime_call(request: web.Request) -> web.Response:
    """`POST /v1/realtime/calls`: an offer as application/sdp, or a form with `sdp` and `session`."""
    desk = request.app[DESK]
    desk.check(request)
    if request.content_type == "application/sdp":
        offer, given = await request.text(), None
    else:
        form = await request.post()
        offer, given = _field(form, "sdp"), _field(form, "session")
    call = await _new_call(desk, resumable=True)
    session = RealtimeSession(call, GA, desk.upstream.model, desk.book.grace)
    call.dialect = session
    commands = Commands(session, _no_resume)
    answer = await _connect(request, call, commands, offer, call.attach(after=0)[0])
    if given:
        await commands.on_text(json.dumps({"type": "session.update", "session": _json(given, "session")}))
    place = {"Location": f"/v1/realtime/calls/{call.key}"}
    return web.Response(status=201, text=answer, content_type="application/sdp", headers=place)


async def live_call(request: web.Request) -> web.Response:
    """`POST /v1/live/sessions`: {"session": ..., "transport": {"type": "webrtc", "sdp": ...}}"""
    desk = request.app[DESK]
    desk.check(request)
    body = _json(await request.text(), "body")
    transport = body.get("transport")
    if (
        not isinstance(transport, dict)
        or transport.get("type") != "webrtc"
        or not isinstance(transport.get("sdp"), str)
    ):
        raise Refused(400, 'transport: expected {"type": "webrtc", "sdp": ...}')
    call = await _new_call(desk, resumable=False)
    session = LiveSession(call, desk.upstream.model)
    call.dialect = session
    try:
        config = LiveConfig.read(body.get("session"), call.prompts.choose, call.personas.names)
        if config.form != Format():
            raise EventError("unsupported_parameter", "session.audio.format: WebRTC negotiates its own")
    except EventError as error:
        desk.book.drop(call, "refused")
        raise Refused(400, error.message) from None
    reader = LiveCommands(session, sideband=False)
    answer = await _connect(request, call, reader, transport["sdp"], call.attach(after=0)[0])
    session.start(config, None)
    return web.json_response({"session": {"id": call.key}, "transport": {"type": "webrtc", "sdp": answer}}, status=201)


async def hang_up(request: web.Request) -> web.Response:
    """`POST /v1/realtime/calls/{id}/hangup`"""
    desk = request.app[DESK]
    desk.check(request)
    call = desk.book.find(request.match_info["id"])
    if call is None:
        raise Refused(404, "call_id: that call has ended or never was")
    call.end()
    return web.Response()


async def no_trickle(request: web.Request) -> web.Response:
    """`PATCH` of a call, as WHIP has it for candidates that come later."""
    request.app[DESK].check(request)
    raise Refused(400, "candidates: expected none after the offer; a client is found by its first check")


async def _new_call(desk: Desk, *, resumable: bool) -> Call:
    try:
        return await desk.new_call(live=True, limit_seconds=BACKLOG_SECONDS, resumable=resumable)
    except DuplexError as error:
        raise Refused(503, f"{error.code.lower()}: {error.message}") from None


async def _connect(
    request: web.Request, call: Call, reader: RtcReader, offer: str, outbox: Outbox, greeting: str | None = None
) -> str:
    """The answer; from here on the peer lives by itself."""
    desk = request.app[DESK]
    peer = Peer(desk.book, desk.access.ice_servers)
    peer.adopt(call, reader, outbox, greeting)
    try:
        answer = await peer.answer(offer)
    except ValueError as error:
        await peer.close()
        desk.book.leave(call, outbox)
        raise Refused(400, str(error)) from None
    running = asyncio.create_task(peer.run())
    request.app[PEERS].add(running)
    running.add_done_callback(request.app[PEERS].discard)
    return answer


async def _no_resume(key: str, last: int) -> None:
    raise EventError("unsupported_event", "session.resume: over WebSocket only", "type")


def _field(form: Any, name: str) -> str:
    """Of a form; as text or as a small file."""
    value = form.get(name, "")
    return value if isinstance(value, str) else value.file.read().decode(errors="replace")


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise Refused(400, f"{where}: expected a JSON object")
    return given
