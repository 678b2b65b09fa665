"""The way to the served model: one connection, shared by all conversations, made when it is first needed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from client.stream import DuplexClient, DuplexError, Tls

CONNECT_SECONDS = 3.0  # how long a caller waits for a server that may be starting


@dataclass(eq=False)
class Link:
    """A connection and the number of those who use it. It is closed when another has taken its place and none does."""

    client: DuplexClient
    users: int = 0


class Upstream:
    """Hands out a connection. After the server was away it is asked again, for it may serve another model now."""

    def __init__(self, url: str, model: str, tls: Tls | None = None) -> None:
        self.url, self.model, self.tls = url, model, tls
        self._link: Link | None = None
        self._stale = False
        self._connecting: asyncio.Task[None] | None = None  # all who wait share it
        self._closing: set[asyncio.Task[None]] = set()

    async def take(self) -> Link:
        """The present connection; give it back. Raises DuplexError (UNAVAILABLE) when the model is not ready."""
        while self._link is None or self._stale:
            self._connecting = self._connecting or asyncio.create_task(self._connect())
            await asyncio.shield(self._connecting)
        self._link.users += 1
        return self._link

    def give_back(self, link: Link) -> None:
        link.users -= 1
        if link is not self._link and not link.users:
            self._close(link)

    async def is_ready(self) -> bool:
        try:
            link = await self.take()
        except DuplexError:
            return False
        try:
            return await link.client.is_ready()
        finally:
            self.give_back(link)

    def distrust(self) -> None:
        """A conversation lost the server: connect anew before the next one."""
        self._stale = True

    async def close(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait({self._connecting})
        if self._link is not None:
            self._close(self._link)
            self._link = None
        while self._closing:
            await asyncio.wait(self._closing)

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(2 * CONNECT_SECONDS):
                fresh = await DuplexClient.connect(self.url, model=self.model, timeout=CONNECT_SECONDS, tls=self.tls)
        except TimeoutError:
            raise DuplexError("UNAVAILABLE", f"{self.url}: no answer within {2 * CONNECT_SECONDS:g} s") from None
        finally:
            self._connecting = None
        old, self._link, self._stale = self._link, Link(fresh), False
        if old is not None and not old.users:
            self._close(old)

    def _close(self, link: Link) -> None:
        task = asyncio.create_task(link.client.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
