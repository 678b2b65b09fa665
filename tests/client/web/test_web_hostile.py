"""Clients that misbehave are refused or dropped; whoever behaves does not notice, and memory stays where it was."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import io
import json
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
import pytest
from aiohttp import ClientSession, TCPConnector, WSMsgType, WSServerHandshakeError
from PIL import Image

from client.stream.units import UnitShape
from client.web.call.outbox import LIMITS
from client.web.page import frames as page_frames

pytestmark = pytest.mark.unit
SECRET = "correct horse battery staple"
LARGE = UnitShape(samples=2560, height=192, width=192)
MIB = 1 << 20
BEGIN = page_frames.pack(page_frames.PCM16, 0, b"")
MANY = ("--connects-per-minute", "100000")


@dataclass
class Gateway:
    """The real command in a process of its own, so that its memory can be weighed."""

    url: str
    process: psutil.Process
    http: ClientSession

    def connect(self, path: str = "/v1/session", **kwargs: Any) -> Any:
        headers = {"Authorization": f"Bearer {SECRET}", **kwargs.pop("headers", {})}
        return self.http.ws_connect(self.url + path, headers=headers, **kwargs)

    async def stats(self) -> dict[str, Any]:
        async with self.http.get(f"{self.url}/v1/stats", headers={"Authorization": f"Bearer {SECRET}"}) as response:
            return await response.json()

    def memory(self) -> int:
        return self.process.memory_info().rss


@dataclass
class Listener:
    """A well-behaved client beside the others: what came of its conversation."""

    units: list[int] = field(default_factory=list)
    audio: list[int] = field(default_factory=list)
    shed: dict[str, int] = field(default_factory=dict)

    async def listen(self, ws: Any) -> None:
        await ws.send_json({"type": "hello"})
        await ws.send_bytes(BEGIN)
        async for message in ws:
            if message.type is WSMsgType.TEXT:
                data = json.loads(message.data)
                if data["type"] == "unit":
                    self.units.append(data["unit"])
                    self.shed = data["shed"]
            elif message.type is WSMsgType.BINARY and (frame := page_frames.unpack(message.data)).kind == 1:
                self.audio.append(frame.unit)

    async def more(self, count: int) -> None:
        """Waits until that many more units have come."""
        goal = len(self.units) + count
        async with asyncio.timeout(30):
            while len(self.units) < goal:
                await asyncio.sleep(0.05)

    def check(self) -> None:
        """Every unit came, in order and with its sound, and nothing was left out for it."""
        assert self.units == list(range(len(self.units)))
        assert self.audio == list(range(len(self.audio)))
        assert abs(len(self.audio) - len(self.units)) <= 1
        assert self.shed == {}


@pytest.fixture
async def start_command() -> AsyncIterator[Any]:
    async with contextlib.AsyncExitStack() as stack:

        async def start(upstream: str, *flags: str) -> Gateway:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "client.web", "--url", upstream, "--port", "0", "--token", SECRET, *flags),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )

            async def stop() -> None:
                process.terminate()
                await asyncio.wait_for(process.wait(), 20)

            stack.push_async_callback(stop)
            assert process.stdout is not None
            line = (await asyncio.wait_for(process.stdout.readline(), 30)).decode()
            http = await stack.enter_async_context(ClientSession())
            return Gateway(line.split()[1].partition("/#")[0], psutil.Process(process.pid), http)

        yield start


async def _vanish(gateway: Gateway, number: int) -> None:
    """Opens a connection and is gone without a word: at once, after hello, or in mid-conversation."""
    ws = await gateway.connect("/v1/realtime" if number % 5 == 4 else "/v1/session")
    with contextlib.suppress(ConnectionError):
        if number % 5 in (1, 2, 3):
            await ws.send_json({"type": "hello"})
            await ws.send_bytes(BEGIN)
        if number % 5 in (2, 3):
            for _ in range(number % 5 * 3):
                await ws.receive()
        if number % 5 == 4:
            await ws.send_json({"type": "response.create"})
    if ws._response.connection is not None:
        ws._response.connection.transport.abort()


async def test_fifty_connections_that_vanish_leave_nothing_behind(start_fake, start_command):
    fake, _ = await start_fake()
    gateway = await start_command(fake.url, *MANY)
    listener = Listener()
    async with gateway.connect() as ws:
        listening = asyncio.create_task(listener.listen(ws))
        await listener.more(2)
        weights = []
        for _ in range(3):
            await asyncio.gather(*(_vanish(gateway, number) for number in range(50)))
            async with asyncio.timeout(30):
                while (await gateway.stats())["sessions"] > 1:
                    await asyncio.sleep(0.1)
            weights.append(gateway.memory())
        await listener.more(3)
        stats = await gateway.stats()
        listening.cancel()
    listener.check()
    assert stats["opened"] >= 100
    assert stats["sessions"] == 1
    assert weights[2] - weights[0] < 16 * MIB, weights


async def test_a_hundred_megabytes_are_not_even_read(start_fake, start_command):
    fake, _ = await start_fake()
    gateway = await start_command(fake.url)
    listener = Listener()
    async with gateway.connect() as ws:
        listening = asyncio.create_task(listener.listen(ws))
        await listener.more(2)
        before = gateway.memory()
        for path in ("/v1/session", "/v1/realtime"):
            async with gateway.connect(path) as huge:
                await huge.send_json({"type": "hello"})
                with contextlib.suppress(ConnectionError):
                    await huge.send_bytes(bytes(100 * MIB))
                with contextlib.suppress(ConnectionError, TimeoutError):
                    async with asyncio.timeout(10):
                        while (message := await huge.receive()).type in (WSMsgType.TEXT, WSMsgType.BINARY):
                            pass
                        assert message.type in (WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.ERROR)
                assert huge.closed
        assert gateway.memory() - before < 24 * MIB
        await listener.more(3)
        listening.cancel()
    listener.check()


async def test_a_flood_of_strangers_is_turned_away(start_fake, start_command):
    fake, _ = await start_fake()
    gateway = await start_command(fake.url, *MANY)

    async def knock(headers: dict[str, str]) -> int:
        with pytest.raises(WSServerHandshakeError) as refused:
            async with gateway.connect(headers=headers):
                pass
        return refused.value.status

    listener = Listener()
    async with gateway.connect() as ws:
        listening = asyncio.create_task(listener.listen(ws))
        await listener.more(2)
        wrong = await asyncio.gather(*(knock({"Authorization": f"Bearer guess{i}"}) for i in range(50)))
        foreign = await asyncio.gather(*(knock({"Origin": f"https://site{i}.example"}) for i in range(50)))
        await listener.more(3)
        stats = await gateway.stats()
        listening.cancel()
    assert (set(wrong), set(foreign)) == ({401}, {403})
    assert stats["turned_away"] == {"token": 50, "origin": 50}
    assert stats["opened"] == 1
    listener.check()


def png(width: int, height: int) -> bytes:
    """Zeros, which are small on the wire, whatever the size."""
    out = io.BytesIO()
    Image.new("1", (width, height)).save(out, "PNG")
    return out.getvalue()


async def test_picture_bombs_and_packed_bodies_cost_nothing(start_fake, start_command):
    """H17 and H32: an image of 800 bytes took 4 GB, a body of 1 MB stopped everybody for two seconds."""
    fake, _ = await start_fake()
    gateway = await start_command(fake.url, *MANY)
    listener = Listener()
    large, out = Image.new("L", (4096, 4096)), io.BytesIO()
    large.save(out, "JPEG")
    bombs = [base64.b64encode(data).decode() for data in (png(250_000, 1), png(4096, 4096), out.getvalue())]

    async def throw() -> None:
        async with gateway.connect("/v1/realtime") as ws:
            for bomb in bombs * 3:
                await ws.send_json({"type": "wan.video.append", "image": bomb})
            await ws.send_json({"type": "response.dance"})
            while '"unknown_event"' not in (await ws.receive_str(timeout=30)):
                pass

    async with gateway.connect() as ws:
        listening = asyncio.create_task(listener.listen(ws))
        await listener.more(2)
        before = gateway.memory()
        await asyncio.gather(*(throw() for _ in range(4)))
        packed = gzip.compress(bytes(256 * MIB), 1)
        for _ in range(4):
            headers = {"Content-Encoding": "gzip", "Connection": "close"}
            with contextlib.suppress(ConnectionError):
                async with gateway.http.post(f"{gateway.url}/healthz", data=packed, headers=headers) as response:
                    assert response.status == 415
        assert gateway.memory() - before < 128 * MIB
        await listener.more(3)
        listening.cancel()
    listener.check()


def _small_window(address: Any) -> socket.socket:
    """A client socket that holds little, so that a reader who stops is felt soon."""
    made = socket.socket(address[0], address[1], address[2])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
    made.setblocking(False)
    return made


async def test_a_reader_that_stops_loses_pictures_then_sound_but_not_its_conversation(
    start_fake, start_gate, monkeypatch
):
    monkeypatch.setattr("client.web.door.connection.STALL_SECONDS", 2.0)
    noise = np.random.default_rng(0).integers(0, 256, LARGE.frames, np.uint8)
    fake, _ = await start_fake(shape=LARGE, answer=lambda seen: ("speak", "", seen.pcm, noise))
    gate = await start_gate(fake.url)
    listener = Listener()
    async with (
        ClientSession(connector=TCPConnector(socket_factory=_small_window)) as slow_http,
        gate.http.ws_connect(f"{gate.url}/v1/session") as ws,
        slow_http.ws_connect(f"{gate.url}/v1/session") as slow,
    ):
        listening = asyncio.create_task(listener.listen(ws))
        await slow.send_json({"type": "hello"})
        await slow.send_bytes(BEGIN)
        welcome = await slow.receive_json()
        call = gate.desk.book.find(welcome["session"])
        assert call is not None
        while call.answered < 8:
            await slow.receive()
        slow._response.connection.transport.pause_reading()
        async with asyncio.timeout(20):
            while call.attached and call.shed().get("video", 0) < 5:
                await asyncio.sleep(0.05)
        assert call.shed().get("audio", 0) == 0
        outbox = call._outbox
        async with asyncio.timeout(20):
            while call.attached:
                assert outbox is not None
                assert outbox._counts["video"] <= LIMITS["video"]
                await asyncio.sleep(0.05)
        assert not call.closed
        assert gate.desk.book.waiting == 1
        answered = call.answered
        async with gate.http.ws_connect(f"{gate.url}/v1/session") as again:
            resume = {"session": call.key, "after": call.journal.last}
            await again.send_json({"type": "hello", "resume": resume})
            assert (await again.receive_json())["resumed"]
            while (message := await again.receive()).type is not WSMsgType.TEXT or '"unit"' not in message.data:
                pass
        assert call.answered > answered
        listening.cancel()
        slow._response.connection.transport.abort()
    listener.check()
