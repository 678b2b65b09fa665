"""All conversations of one gateway: how many there may be, which wait for their client, how they are found again."""

from __future__ import annotations

import asyncio
import hmac
from collections import Counter, OrderedDict

from client.stream import DuplexError

from .call import Call
from .outbox import Outbox

GRACE_SECONDS = 20.0  # a client may be away that long; the server gives an idle session 30 s
BEGIN_SECONDS = 60.0  # until the client's first sound or text; until then its conversation costs the model nothing
YOUNG_UNITS = 6  # a conversation that has not lasted a second is not worth waiting for
MAX_WAITING = 16  # conversations without a client; beyond that the oldest goes


class BookFull(DuplexError):
    """The gateway holds as many conversations as it may."""

    def __init__(self, most: int) -> None:
        super().__init__("RESOURCE_EXHAUSTED", f"sessions: expected at most {most} at this gateway, try again later")


class CallBook:
    """Owns every Call from `add` until it is closed."""

    def __init__(self, max_calls: int, grace: float = GRACE_SECONDS) -> None:
        self.max_calls = max_calls
        self.grace = grace
        self.count: Counter[str] = Counter()  # opened, refused, resumed, waited, expired, closed, mended
        self._calls: dict[str, Call] = {}
        self._waiting: OrderedDict[str, asyncio.TimerHandle] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def waiting(self) -> int:
        """Conversations whose client is away."""
        return len(self._waiting)

    def check_room(self) -> None:
        """Raises BookFull when a new conversation would find no place; see `add`."""
        if len(self._calls) >= self.max_calls and self._least_missed() is None:
            self.count["refused"] += 1
            raise BookFull(self.max_calls)

    def add(self, call: Call) -> None:
        """Takes a conversation in. One that waits for its client, or whose client is silent, makes room for it.

        Raises BookFull.
        """
        self.check_room()
        if len(self._calls) >= self.max_calls and (least := self._least_missed()) is not None:
            self.count["expired"] += 1
            self._close(least, "room was needed")
        self.count["opened"] += 1
        self._calls[call.key] = call
        call.on_closed.append(self._forget)
        # By its key: an hour of short visits would be kept, each with what it said, for a minute after its end.
        asyncio.get_running_loop().call_later(BEGIN_SECONDS, self._check_begun, call.key)

    def _least_missed(self) -> Call | None:
        if self._waiting:
            return self._calls[next(iter(self._waiting))]
        silent = (call for call in self._calls.values() if call.yields)
        return min(silent, key=lambda call: (call.started, call.heard_at), default=None)

    def _check_begun(self, key: str) -> None:
        call = self._calls.get(key)
        if call is not None and not call.started:
            self._expire(key, f"expected a first sound or text within {BEGIN_SECONDS:g} s")

    def find(self, key: str) -> Call | None:
        """The conversation with that key; takes as long for a key that is nearly right."""
        found = None
        for known, call in self._calls.items():
            if hmac.compare_digest(known.encode(), key.encode(errors="replace")):
                found = call
        return found

    def resume(self, call: Call, after: int) -> tuple[Outbox, int]:
        """Attaches a client that has come back; see `Call.attach`."""
        self.count["resumed"] += 1
        if (timer := self._waiting.pop(call.key, None)) is not None:
            timer.cancel()
        return call.attach(after)

    def leave(self, call: Call, outbox: Outbox) -> None:
        """The client behind `outbox` is gone: the conversation waits for it, if it is worth it."""
        if not call.detach(outbox) or call.closed:
            return
        if not call.resumable or not call.started or call.answered < YOUNG_UNITS:
            self._close(call, "the client left")
            return
        self.count["waited"] += 1
        loop = asyncio.get_running_loop()
        self._waiting[call.key] = loop.call_later(
            self.grace, self._expire, call.key, f"the client did not come back within {self.grace:g} s"
        )
        while len(self._waiting) > MAX_WAITING:
            self._expire(next(iter(self._waiting)), "too many conversations wait for their clients")

    def drop(self, call: Call, reason: str) -> None:
        """Closes a conversation that nobody will come back for."""
        self._close(call, reason)

    async def close(self) -> None:
        """Ends every conversation."""
        for call in list(self._calls.values()):
            self._close(call, "the gateway is shutting down")
        while self._closing:
            await asyncio.wait(self._closing)

    def _expire(self, key: str, reason: str) -> None:
        if (timer := self._waiting.pop(key, None)) is not None:
            timer.cancel()
        self.count["expired"] += 1
        if (call := self._calls.get(key)) is not None:
            self._close(call, reason)

    def _close(self, call: Call, reason: str) -> None:
        self._forget(call)  # it takes no room any more, though its stream may need a moment to end
        task = asyncio.create_task(call.close(reason))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _forget(self, call: Call) -> None:
        if self._calls.pop(call.key, None) is not None:
            self.count["closed"] += 1
        if (timer := self._waiting.pop(call.key, None)) is not None:
            timer.cancel()
