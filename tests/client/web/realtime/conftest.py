"""A Realtime client that sends whatever a test tells it to."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest


class Socket:
    """A Realtime client that sends whatever it is told to."""

    def __init__(self, ws: Any) -> None:
        self.ws = ws

    async def send(self, data: Any) -> None:
        await self.ws.send_str(data if isinstance(data, str) else json.dumps(data))

    async def until(self, kind: str) -> dict[str, Any]:
        async with asyncio.timeout(20):
            while (event := await self.ws.receive_json())["type"] != kind:
                pass
        return event

    async def error(self, data: Any) -> dict[str, Any]:
        await self.send(data)
        return (await self.until("error"))["error"]


@pytest.fixture
async def connect(start_fake, start_gate):
    """`fake, socket = await connect(headers=...)`"""

    async def start(headers: dict[str, str] | None = None, **fake_options: Any):
        fake, _ = await start_fake(**fake_options)
        gate = await start_gate(fake.url)
        ws = await gate.http.ws_connect(
            f"{gate.url}/v1/realtime?model=x", protocols=("realtime",), headers=headers or {}
        )
        return fake, Socket(ws)

    return start
