"""Seeded events at the gateway's two sockets, over a model that is not there; a page talks beside them and is answered.

Each round is a connection: odd events, then a plain request that has to be answered, unless the gateway has closed the
connection with a code and a reason of its own.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientError, ClientSession, WSMsgType

from client.web.page import frames

ROUND = 50  # events of a connection
ANSWER_SECONDS = 20.0
CLOSES = {1000, 1002, 1003, 1007, 1008, 1009, 1011, 1013, 4000, 4001, 4002, 4003, 4004, 4008, 4009}
TYPES = (
    "session.update",
    "input_audio_buffer.append",
    "input_audio_buffer.commit",
    "input_audio_buffer.clear",
    "conversation.item.create",
    "conversation.item.retrieve",
    "conversation.item.truncate",
    "conversation.item.delete",
    "response.create",
    "response.cancel",
    "hello",
    "text",
    "interrupt",
    "end",
    "nobody.knows",
)
FIELDS = (
    "event_id",
    "session",
    "audio",
    "item",
    "item_id",
    "previous_item_id",
    "response",
    "content_index",
    "audio_end_ms",
    "text",
    "options",
    "type",
    "role",
    "content",
    "instructions",
    "modalities",
    "turn_detection",
    "tools",
)


@dataclass
class Fuzzer:
    url: str
    http: ClientSession
    random: random.Random
    seen: Counter[str] = field(default_factory=Counter)

    async def run(self, events: int) -> None:
        for _ in range(0, events, ROUND):
            await (self._realtime() if self.random.random() < 0.6 else self._page())

    def _value(self, depth: int = 0) -> Any:
        draw = self.random
        kind = draw.randrange(12)
        if kind < 2 and depth < 3:
            return {draw.choice(FIELDS): self._value(depth + 1) for _ in range(draw.randrange(4))}
        if kind == 2 and depth < 3:
            return [self._value(depth + 1) for _ in range(draw.randrange(4))]
        audio = base64.b64encode(draw.randbytes(draw.randrange(600))).decode()
        known = [draw.choice(TYPES), "message", "user", "input_text", "input_audio", "input_image", "pcm16", audio]
        return draw.choice([None, True, -1, 0, 2**63, 1e300, "", "\ud83d", "x" * 300, "data:image/png;base64,", *known])

    def _event(self) -> str | bytes:
        draw, kind = self.random, self.random.random()
        if kind < 0.1:
            return draw.randbytes(draw.randrange(60))
        if kind < 0.2:
            return "".join(map(chr, (draw.randrange(1, 0x2FF) for _ in range(draw.randrange(40)))))
        event = {draw.choice(FIELDS): self._value() for _ in range(draw.randrange(4))}
        return json.dumps({"type": draw.choice(TYPES) if kind < 0.9 else self._value(), **event})

    async def _realtime(self) -> None:
        async with self.http.ws_connect(f"{self.url}/v1/realtime?model=x", protocols=("realtime",)) as ws:
            await self._send(ws, json.dumps({"type": "session.update", "event_id": "last", "session": 7}), "error")

    async def _page(self) -> None:
        async with self.http.ws_connect(f"{self.url}/v1/session") as ws:
            if self.random.random() < 0.8:
                await ws.send_json({"type": "hello"})
            await self._send(ws, None, "")

    async def _send(self, ws: Any, last: str | None, answer: str) -> None:
        with contextlib.suppress(ClientError, ConnectionError):
            for _ in range(ROUND):
                event = self._event()
                await (ws.send_bytes(event) if isinstance(event, bytes) else ws.send_str(event))
            if last is not None:
                await ws.send_str(last)
        if last is None:
            await ws.close()
            self.seen["page"] += 1
            return
        async with asyncio.timeout(ANSWER_SECONDS):
            async for message in ws:
                if message.type is WSMsgType.TEXT and json.loads(message.data)["type"] == answer:
                    if "last" in message.data:
                        self.seen["answered"] += 1
                        return
                    self.seen["error events"] += 1
        if ws.close_code not in CLOSES:
            raise AssertionError(f"closed with {ws.close_code}, not one of ours")
        self.seen[f"closed {ws.close_code}"] += 1


async def page_beside(url: str, http: ClientSession, stop: asyncio.Event) -> tuple[int, int]:
    """A page that sends units until it is told to stop; how many answers came, and the longest run without one."""
    heard = 0
    async with http.ws_connect(f"{url}/v1/session") as ws:
        await ws.send_json({"type": "hello"})
        await ws.send_bytes(frames.pack(frames.PCM16, 0, b""))

        async def listen() -> None:
            nonlocal heard
            async for message in ws:
                if message.type is WSMsgType.TEXT and json.loads(message.data)["type"] == "unit":
                    heard += 1

        listening = asyncio.create_task(listen())
        begin = asyncio.get_running_loop().time()
        while not stop.is_set() and not listening.done():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.1)
        ended = listening.done()
        listening.cancel()
        took = asyncio.get_running_loop().time() - begin
    if ended:
        raise AssertionError(f"the page beside was closed with {ws.close_code}")
    return heard, round(took / 0.16)
