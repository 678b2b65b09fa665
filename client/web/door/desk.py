"""What every request of the gateway needs: the rules, the way to the model, the conversations."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from aiohttp import web

from ..call.call import Call
from ..call.call_book import CallBook
from ..call.personas import Personas
from ..rates import Rates
from .access import Access, Refused, bearer
from .metrics import Metrics
from .upstream import Upstream

PEER_EVENTS = 2000.0  # read a second of all connections of one peer: a fifth of what the loop could do


class Desk:
    """Shared by all handlers of one application."""

    def __init__(self, access: Access, upstream: Upstream, book: CallBook, personas: Personas | None = None) -> None:
        self.access = access
        self.upstream = upstream
        self.book = book
        self.personas = personas or Personas()
        self.refused: Counter[str] = Counter()  # requests turned away, by reason
        self.metrics = Metrics(self.stats)
        self.busy: set[Any] = set()  # connections with a request under way
        self._rates = Rates(access.per_minute / 60, access.per_minute / 2)
        self._events = Rates(PEER_EVENTS, PEER_EVENTS)

    def check(self, request: web.Request, prefixes: tuple[str, ...] = ()) -> None:
        """Raises Refused: too many from there, or no token."""
        protocols = [p.strip() for p in request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
        self.check_rate(request)
        self.access.check_token(bearer(request.headers, protocols, prefixes))

    def check_rate(self, request: web.Request) -> None:
        """Raises Refused (429)."""
        if not self._rates.take(self.peer(request)):
            raise Refused(429, f"rate: expected at most {self.access.per_minute:g} connections a minute from one peer")

    def peer(self, request: web.Request) -> str:
        """Who asks (`Access.peer`)."""
        return self.access.peer(request.headers, request.remote)

    def charge_events(self, peer: str, amount: float) -> float:
        """Seconds for which nothing more is to be read of that peer."""
        return self._events.charge(peer, amount)

    def turn_away(self, error: Refused) -> web.HTTPException:
        """Counts a refusal and makes the answer to it, in the shape that API clients read."""
        self.refused[error.reason.partition(":")[0]] += 1
        body = {"error": {"message": error.reason, "type": "invalid_request_error", "code": str(error.status)}}
        return _ERRORS[error.status](text=json.dumps(body), content_type="application/json")

    async def new_call(self, *, live: bool, limit_seconds: float, resumable: bool = True) -> Call:
        """A conversation that has not begun. Raises DuplexError: BookFull, or the model is not there."""
        self.book.check_room()
        link = await self.upstream.take()
        call = Call(link.client, live=live, limit_seconds=limit_seconds, resumable=resumable, personas=self.personas)
        try:
            self.book.add(call)
        except BaseException:
            self.upstream.give_back(link)
            raise
        call.on_timed = self.metrics.unit_seconds.observe
        call.on_mended.append(self._mended)
        call.on_closed += [self._watch, lambda _: self.upstream.give_back(link)]
        return call

    def renewed_token(self) -> str | None:
        """A fresh token for a client that has shown a good one; None where none is needed."""
        return self.access.make_token()[0] if self.access.secret is not None else None

    def stats(self) -> dict[str, Any]:
        """Counters since the start, for operators and tests."""
        return {
            "sessions": len(self.book),
            "waiting": self.book.waiting,
            **self.book.count,
            "turned_away": self.refused,
        }

    def _mended(self, call: Call) -> None:
        self.book.count["mended"] += 1
        self.upstream.distrust()

    def _watch(self, call: Call) -> None:
        if call.error is not None and call.error.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
            self.upstream.distrust()


_ERRORS: dict[int, type[web.HTTPException]] = {
    400: web.HTTPBadRequest,
    401: web.HTTPUnauthorized,
    403: web.HTTPForbidden,
    404: web.HTTPNotFound,
    415: web.HTTPUnsupportedMediaType,
    429: web.HTTPTooManyRequests,
    503: web.HTTPServiceUnavailable,
}
DESK = web.AppKey("desk", Desk)
