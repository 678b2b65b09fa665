"""The aiohttp application: static page, token endpoint, health, metrics, and the sockets."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from client.stream.line import Line

from .call.call_book import CallBook
from .call.personas import Personas
from .door.access import Access, Refused, bearer
from .door.desk import DESK, Desk
from .door.upstream import Upstream
from .live.socket import live_attach, live_hangup, live_refuse, live_socket
from .page.socket import page_socket
from .realtime.socket import realtime_socket
from .rtc.calls import PEERS, hang_up, live_call, no_trickle, offer_addresses, page_call, realtime_call

log = logging.getLogger(__name__)

REQUEST_SECONDS = 10.0  # for the head of a request to be complete
TIDY_SECONDS = 60.0  # between two returns of memory that conversations left behind
FULL_SECONDS = 1.0  # between two looks at who holds descriptors without a request
STATIC = Path(__file__).parent / "static"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; connect-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
        "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Permissions-Policy": "camera=(self), microphone=(self)",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def make_app(access: Access, upstream: Upstream, book: CallBook, personas: Personas | None = None) -> web.Application:
    """Routes and lifecycle; the caller runs it. It closes `book` and `upstream` when it stops."""
    logging.getLogger("aiohttp.websocket").setLevel(logging.ERROR)  # its warnings quote subprotocols: tokens, that is
    logging.getLogger("aioice").setLevel(logging.WARNING)
    app = web.Application(middlewares=[_guard], client_max_size=64 << 10)
    app[DESK] = Desk(access, upstream, book, personas)
    app[PEERS] = set()
    offer_addresses(access.host)
    app.add_routes(
        [
            web.get("/", _index),
            web.get("/healthz", _health),
            web.get("/v1/stats", _stats),
            web.get("/metrics", _metrics),
            web.post("/v1/realtime/client_secrets", _client_secret),
            web.get("/v1/session", page_socket),
            web.post("/v1/session/calls", page_call),
            web.get("/v1/realtime", realtime_socket),
            web.get("/v1/live/sessions", live_socket),
            web.get("/v1/live/sessions/{id}/attach", live_attach),
            web.post("/v1/live/sessions/{id}/hangup", live_hangup),
            web.post("/v1/live/sessions", live_call),
            web.post("/v1/realtime/calls", realtime_call),
            web.post("/v1/realtime/calls/{id}/hangup", hang_up),
            web.patch("/v1/{way:realtime/calls|live/sessions|session/calls}/{id}", no_trickle),
            web.route("*", "/v1/live/sessions/{id}/{verb:fork|content|accept|refer|reject}", live_refuse),
            web.static("/static", STATIC),
        ]
    )
    app.cleanup_ctx.append(_lifecycle)
    return app


def make_runner(app: web.Application, shutdown_timeout: float = 2.0) -> web.AppRunner:
    """A body that comes packed is not unpacked, for that would be done before anybody can refuse it."""
    return web.AppRunner(
        app,
        access_log=None,
        shutdown_timeout=shutdown_timeout,
        auto_decompress=False,
        keepalive_timeout=REQUEST_SECONDS,
    )


def spare_descriptors(runner: web.AppRunner) -> None:
    """When there is no descriptor for a newcomer, those who hold one without a request lose it.

    asyncio would say it in a traceback a connection, and try again for ever.
    """
    loop, desk = asyncio.get_running_loop(), runner.app[DESK]
    quiet_until = 0.0

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal quiet_until
        if "accept()" not in context["message"]:
            loop.default_exception_handler(context)
        elif (now := time.monotonic()) >= quiet_until:
            quiet_until = now + FULL_SECONDS
            idle = [each for each in (runner.server.connections if runner.server else ()) if each not in desk.busy]
            log.warning("no descriptors are left (%s): closing %d idle connections", context["exception"], len(idle))
            for each in idle:
                each.force_close()

    loop.set_exception_handler(handle)


async def _lifecycle(app: web.Application) -> AsyncIterator[None]:
    tidying = asyncio.create_task(_tidy())
    # gRPC ends with its last channel, and aborts the process if it cannot begin again for want of a descriptor.
    kept = Line("127.0.0.1:1")  # never connected
    yield
    tidying.cancel()
    await kept.close()
    for peer in app[PEERS]:
        peer.cancel()
    await asyncio.gather(*app[PEERS], return_exceptions=True)
    await app[DESK].book.close()
    await app[DESK].upstream.close()


async def _tidy() -> None:
    """Sockets and cancelled tasks of aiohttp and asyncio refer to themselves, and hold what was said: 50 kB a visit,
    which Python by itself looks for after some 400 of them. Here, for what it frees belongs to this thread; the return
    (glibc's alone) in another, so that no conversation waits for it."""
    back = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)
    while True:
        await asyncio.sleep(TIDY_SECONDS)
        gc.collect()
        await asyncio.to_thread(back, 0)


@web.middleware
async def _guard(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Host and origin of every request; headers of every answer, errors too."""
    desk = request.app[DESK]
    desk.busy.add(request.protocol)
    try:
        probed = request.path == "/healthz" or (request.path == "/metrics" and desk.access.secret is not None)
        desk.access.check_place(request.headers, any_host=probed)
        if "Content-Encoding" in request.headers:
            raise Refused(415, "content-encoding: expected none")
        response = await handler(request)
    except Refused as error:
        response = desk.turn_away(error)
    except web.HTTPException as error:
        response = error
    finally:
        desk.busy.discard(request.protocol)
    if not response.prepared:
        response.headers.update(HEADERS)
    if isinstance(response, web.HTTPException):
        raise response
    return response


async def _index(request: web.Request) -> web.StreamResponse:
    return web.FileResponse(STATIC / "index.html")


async def _health(request: web.Request) -> web.Response:
    """200 when a conversation could begin now, 503 when not."""
    ready = await request.app[DESK].upstream.is_ready()
    return web.json_response({"ready": ready}, status=200 if ready else 503)


async def _stats(request: web.Request) -> web.Response:
    request.app[DESK].check(request)
    return web.json_response(request.app[DESK].stats())


async def _metrics(request: web.Request) -> web.Response:
    request.app[DESK].check(request)
    return web.Response(body=request.app[DESK].metrics.text(), content_type="text/plain", charset="utf-8")


async def _client_secret(request: web.Request) -> web.Response:
    """A token with a short life, for whoever knows the secret; the shape is that of OpenAI's endpoint of this name."""
    desk = request.app[DESK]
    desk.check_rate(request)
    desk.access.check_secret(bearer(request.headers, [], ()))
    token, expires = desk.access.make_token()
    session = {"type": "realtime", "object": "realtime.session", "model": desk.upstream.model}
    return web.json_response({"value": token, "expires_at": expires, "session": session})
