"""What every request of the gateway needs: the rules, the way to the model, the conversations."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from aiohttp import web

from client.web.call.call import Call
from client.web.call.call_book import CallBook
from client.web.door.access import Access, Refused, bearer
from client.web.door.upstream import Upstream


class Desk:
    """Shared by all handlers of one application."""

    def __init__(self, access: Access, upstream: Upstream, book: CallBook) -> None:
        self.access = access
        self.upstream = upstream
        self.book = book
        self.refused: Counter[str] = Counter()  # requests turned away, by reason

    def check(self, request: web.Request, prefixes: tuple[str, ...] = ()) -> None:
        """Raises the HTTP error of a request that may not open a socket."""
        protocols = [p.strip() for p in request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
        try:
            self.access.check_place(request.headers)
            self.access.check_token(bearer(request.headers, protocols, prefixes))
        except Refused as error:
            raise self.turn_away(error) from None

    def turn_away(self, error: Refused) -> web.HTTPException:
        """Counts a refusal and makes the answer to it, in the shape that API clients read."""
        self.refused[error.reason.partition(":")[0]] += 1
        kind: type[web.HTTPException] = web.HTTPUnauthorized if error.status == 401 else web.HTTPForbidden
        body = {"error": {"message": error.reason, "type": "invalid_request_error", "code": str(error.status)}}
        return kind(text=json.dumps(body), content_type="application/json")

    async def new_call(self, *, live: bool, limit_seconds: float) -> Call:
        """A conversation that has not begun. Raises BookFull, or DuplexError when the model is not there."""
        self.book.check_room()
        call = Call(await self.upstream.client(), live=live, limit_seconds=limit_seconds)
        self.book.check_room()  # others may have come in while this one waited
        self.book.add(call)
        call.on_closed.append(self._watch)
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

    def _watch(self, call: Call) -> None:
        if call.error is not None and call.error.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
            self.upstream.distrust()


DESK = web.AppKey("desk", Desk)
