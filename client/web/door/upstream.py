"""The way to the served model: one connection, shared by all conversations, made when it is first needed."""

from __future__ import annotations

import asyncio

from client.stream.client import DuplexClient
from client.stream.errors import DuplexError

CONNECT_SECONDS = 3.0  # how long a caller waits for a server that may be starting


class Upstream:
    """Hands out a DuplexClient. After the server was away it is asked again, for it may serve another model now."""

    def __init__(self, url: str, model: str) -> None:
        self.url = url
        self.model = model
        self._client: DuplexClient | None = None
        self._stale = False
        self._lock = asyncio.Lock()

    async def client(self) -> DuplexClient:
        """Raises DuplexError (UNAVAILABLE) when the server is not there or the model is not ready."""
        async with self._lock:
            if self._client is None or self._stale:
                fresh = await DuplexClient.connect(self.url, model=self.model, timeout=CONNECT_SECONDS)
                if self._client is not None:
                    await self._client.close()
                self._client, self._stale = fresh, False
            return self._client

    async def is_ready(self) -> bool:
        try:
            return await (await self.client()).is_ready()
        except DuplexError:
            return False

    def distrust(self) -> None:
        """A conversation lost the server: connect anew before the next one."""
        self._stale = True

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None
