"""The aiohttp application: static page, token endpoint, health, and the two sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from aiohttp import web

from client.web.call.call_book import CallBook
from client.web.door.access import Access, Refused, bearer
from client.web.door.desk import DESK, Desk
from client.web.door.upstream import Upstream
from client.web.page.socket import page_socket
from client.web.realtime.socket import realtime_socket

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


def make_app(access: Access, upstream: Upstream, book: CallBook) -> web.Application:
    """Routes and lifecycle; the caller runs it. It closes `book` and `upstream` when it stops."""
    app = web.Application(middlewares=[_guard], client_max_size=64 << 10)
    app[DESK] = Desk(access, upstream, book)
    app.add_routes(
        [
            web.get("/", _index),
            web.get("/healthz", _health),
            web.get("/v1/stats", _stats),
            web.post("/v1/realtime/client_secrets", _client_secret),
            web.get("/v1/session", page_socket),
            web.get("/v1/realtime", realtime_socket),
            web.static("/static", STATIC),
        ]
    )
    app.cleanup_ctx.append(_lifecycle)
    return app


async def _lifecycle(app: web.Application) -> AsyncIterator[None]:
    yield
    await app[DESK].book.close()
    await app[DESK].upstream.close()


@web.middleware
async def _guard(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Host and origin of every request; headers of every answer."""
    desk = request.app[DESK]
    try:
        desk.access.check_place(request.headers)
    except Refused as error:
        raise desk.turn_away(error) from None
    response = await handler(request)
    if not response.prepared:
        response.headers.update(HEADERS)
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


async def _client_secret(request: web.Request) -> web.Response:
    """A token with a short life, for whoever knows the secret; the shape is that of OpenAI's endpoint of this name."""
    desk = request.app[DESK]
    try:
        desk.access.check_secret(bearer(request.headers, [], ()))
    except Refused as error:
        raise desk.turn_away(error) from None
    token, expires = desk.access.make_token()
    session = {"type": "realtime", "object": "realtime.session", "model": desk.upstream.model}
    return web.json_response({"value": token, "expires_at": expires, "session": session})
