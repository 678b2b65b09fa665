"""`/v1/session`: the page's way in. The first message says hello; it starts a conversation or resumes one."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from client.stream import DuplexError

from ..call.call import Call
from ..call.outbox import Outbox
from ..door.connection import CLOSE_BUSY, CLOSE_REFUSED, Connection
from ..door.desk import DESK, Desk
from ..events import to_text
from .session import PageSession

PROTOCOL = "wan.session.v1"
TOKEN_PROTOCOL = "wan-token."
HELLO_SECONDS = 10.0
MAX_MESSAGE = 1 << 20  # bytes; a strip of four 480p frames as JPEG has a quarter of that
LIVE_SECONDS = 0.4  # of a microphone may wait; older sound is dropped
OPTIONS = ("prompt", "voice", "seed", "solver_steps", "retention")  # of the model's, which a page may choose


async def page_socket(request: web.Request) -> web.StreamResponse:
    """Serves one WebSocket of the page."""
    desk = request.app[DESK]
    desk.check(request, (TOKEN_PROTOCOL,))
    connection = await Connection.open(request, desk.book, protocols=(PROTOCOL,), max_bytes=MAX_MESSAGE)
    try:
        hello = read_hello(await connection.first(HELLO_SECONDS))
    except ValueError as error:
        await connection.close(CLOSE_REFUSED, str(error))
        return connection.ws
    try:
        call, session, outbox, missed = await join(desk, hello)
    except DuplexError as error:
        await connection.ws.send_str(json.dumps({"type": "error", "code": error.code, "message": error.message}))
        await connection.close(CLOSE_BUSY, error.code)
        return connection.ws
    connection.adopt(call, session, outbox, welcome(desk, call, session, missed))
    await connection.run()
    return connection.ws


def read_hello(data: str | None) -> dict[str, Any]:
    """{"type": "hello", "video": "jpeg" | "rgb", "options": {...}, "resume": {"session": key, "after": seq}}"""
    if data is None:
        raise ValueError(f"expected a hello message within {HELLO_SECONDS:g} s")
    try:
        hello = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("hello: expected JSON") from None
    if not isinstance(hello, dict) or hello.get("type") != "hello":
        raise ValueError("hello: expected it as the first message")
    if hello.get("video", "jpeg") not in ("jpeg", "rgb"):
        raise ValueError(f"hello.video: expected jpeg or rgb, got {hello['video']!r:.40}")
    for name in ("options", "resume"):
        if not isinstance(hello.get(name) or {}, dict):
            raise ValueError(f"hello.{name}: expected an object")
    return hello


async def join(desk: Desk, hello: dict[str, Any]) -> tuple[Call, PageSession, Outbox, int]:
    """The conversation to go on with, or a new one. Raises DuplexError."""
    resume = hello.get("resume") or {}
    if resume:
        found = desk.book.find(str(resume.get("session", "")))
        if found is not None and isinstance(found.dialect, PageSession):
            after = resume.get("after")
            outbox, missed = desk.book.resume(found, after if isinstance(after, int) else found.journal.last)
            return found, found.dialect, outbox, missed
        if resume.get("only"):
            raise DuplexError("NOT_FOUND", "resume: that session has ended")
    call = await desk.new_call(live=True, limit_seconds=LIVE_SECONDS)
    given = hello.get("options") or {}
    options = {name: given[name] for name in OPTIONS if name in given}
    asked = options.get("prompt", "")
    if prompt := call.prompts.choose(asked if isinstance(asked, str) else ""):
        options["prompt"] = prompt
    session = PageSession(call, options, raw_video=hello.get("video") == "rgb")
    call.dialect = session
    outbox, missed = call.attach()
    return call, session, outbox, missed


def welcome(desk: Desk, call: Call, session: PageSession, missed: int) -> str:
    """The first message to the page."""
    shape = call.shape
    message = {
        "type": "welcome",
        "session": call.key,
        "resumed": call.answered > 0,
        "missed": missed,
        "after": call.journal.last,
        "state": session.state,
        "history": list(session.history),
        "shape": {
            "samples": shape.samples,
            "sample_rate": shape.sample_rate,
            "height": shape.height,
            "width": shape.width,
        },
        "model": call.model,
        "prompt": {"in_force": session.options.get("prompt", ""), "known": call.prompts.known},
        "voice": {"in_force": call.personas.in_force(session.options.get("voice")), "known": call.personas.names},
        "token": desk.renewed_token(),
        "grace_s": desk.book.grace,
    }
    return to_text(message)
