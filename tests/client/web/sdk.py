"""The openai package as a client of the gateway under test."""

from __future__ import annotations

import asyncio
from typing import Any

from openai import AsyncOpenAI


def connect_sdk(gate: Any, key: str = "-") -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{gate.url}/v1", websocket_base_url=f"ws://127.0.0.1:{gate.port}/v1", api_key=key)


async def until(connection: Any, kind: str, seen: list[Any] | None = None) -> Any:
    """The next event of that type; all on the way go to `seen`."""
    async with asyncio.timeout(20):
        while True:
            event = await connection.recv()
            if seen is not None:
                seen.append(event)
            if event.type == kind:
                return event
