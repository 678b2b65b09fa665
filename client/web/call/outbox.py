"""Messages on their way to one client: what waits (`Outbox`) and what was sent lately (`Journal`), both bounded.

Kind to the ear: a slow reader loses video first, then audio.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from dataclasses import dataclass
from typing import Literal

from .fence import Fence

Kind = Literal["control", "audio", "video"]
Closing = Literal["ended", "taken over", "too slow"]
CLOSE_CODES: dict[Closing, int] = {"ended": 1000, "taken over": 4001, "too slow": 4002}  # of a WebSocket

LIMITS: dict[Kind, int] = {"video": 3, "audio": 12, "control": 512}  # half a second, two seconds, a minute
MAX_BYTES = 2 << 20  # that wait, and that are remembered
REMEMBERED = 512  # messages


@dataclass(frozen=True)
class Message:
    """One WebSocket message. epoch: see `Fence`.  seq: its place in the conversation, for a resuming client."""

    kind: Kind
    data: str | bytes
    epoch: int | None = None
    seq: int = 0


class OutboxFull(Exception):
    """A client that does not even read its control messages."""


class Outbox:
    """Queue between a conversation and the socket of one client."""

    def __init__(self, fence: Fence) -> None:
        self.dropped: Counter[str] = Counter()
        self.closed: Closing | None = None
        self._fence = fence
        self._queue: deque[Message] = deque()
        self._counts: Counter[str] = Counter()
        self._bytes = 0
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._queue)

    def close(self, why: Closing) -> None:
        """Nothing follows: `get` serves what still waits, then returns None."""
        self.closed = self.closed or why
        self._filled.set()

    def room(self, kind: Kind) -> bool:
        """Whether a message of that kind would push out none of its own."""
        return self._counts[kind] < LIMITS[kind]

    def put(self, message: Message) -> None:
        """Never waits. Raises OutboxFull when there is no media left to drop."""
        if self.closed:
            return
        self._queue.append(message)
        self._count(message, 1)
        if message.kind != "control" and self._counts[message.kind] > LIMITS[message.kind]:
            self._drop_oldest(message.kind)
        while self._bytes > MAX_BYTES or self._counts["control"] > LIMITS["control"]:
            if not (self._drop_oldest("video") or self._drop_oldest("audio")):
                raise OutboxFull(
                    f"{len(self._queue)} messages ({self._bytes} bytes) wait for a client that does not read"
                )
        self._filled.set()

    async def get(self) -> Message | None:
        """The next message that the fence lets through; None at the end."""
        while True:
            while self._queue:
                message = self._queue.popleft()
                self._count(message, -1)
                if self._fence.passes(message.epoch):
                    return message
            if self.closed:
                return None
            self._filled.clear()
            await self._filled.wait()

    def _drop_oldest(self, kind: Kind) -> bool:
        for place, message in enumerate(self._queue):
            if message.kind == kind:
                del self._queue[place]
                self._count(message, -1)
                self.dropped[kind] += 1
                return True
        return False

    def _count(self, message: Message, sign: int) -> None:
        self._counts[message.kind] += sign
        self._bytes += sign * len(message.data)


class Journal:
    """The newest messages of one conversation, numbered from 1, so that a client that comes back misses nothing.

    Pictures are left out: they are stale.
    """

    def __init__(self) -> None:
        self.last = 0  # number of the newest message
        self._kept: deque[Message] = deque()
        self._bytes = 0

    def add(self, message: Message) -> None:
        """Keeps `message`, whose `seq` must be the one after the last."""
        self.last = message.seq
        self._kept.append(message)
        self._bytes += len(message.data)
        while len(self._kept) > REMEMBERED or self._bytes > MAX_BYTES:
            self._bytes -= len(self._kept.popleft().data)

    def after(self, seq: int) -> tuple[list[Message], int]:
        """Messages that follow number `seq`, and how many of those are gone for good."""
        first = self._kept[0].seq if self._kept else self.last + 1
        return [message for message in self._kept if message.seq > seq], max(0, first - seq - 1)
