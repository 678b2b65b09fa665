"""What was sent lately, so that a client that comes back misses nothing. Pictures are left out: they are stale."""

from __future__ import annotations

from collections import deque

from client.web.call.outbox import Message

MAX_EVENTS = 512
MAX_BYTES = 2 << 20


class Journal:
    """The newest messages of one conversation, numbered from 1."""

    def __init__(self) -> None:
        self.last = 0  # number of the newest message
        self._kept: deque[Message] = deque()
        self._bytes = 0

    def add(self, message: Message) -> None:
        """Keeps `message`, whose `seq` must be the one after the last."""
        self.last = message.seq
        self._kept.append(message)
        self._bytes += len(message.data)
        while len(self._kept) > MAX_EVENTS or self._bytes > MAX_BYTES:
            self._bytes -= len(self._kept.popleft().data)

    def after(self, seq: int) -> tuple[list[Message], int]:
        """Messages that follow number `seq`, and how many of those are gone for good."""
        first = self._kept[0].seq if self._kept else self.last + 1
        return [message for message in self._kept if message.seq > seq], max(0, first - seq - 1)
