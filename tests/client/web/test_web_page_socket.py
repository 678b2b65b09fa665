"""`/v1/session`: what the page sends and gets, barge-in, interrupt, resume, and an unfriendly server."""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from aiohttp import WSMsgType
from PIL import Image

from client.stream.units import UnitShape
from client.web import media
from client.web.call.call_book import YOUNG_UNITS
from client.web.page import frames as page_frames

pytestmark = pytest.mark.unit
SHAPE = UnitShape(samples=2560, height=64, width=64)
TONE = (0.3 * np.sin(np.arange(SHAPE.samples) * 2 * np.pi * 400 / 16_000)).astype(np.float32)
QUIET = np.zeros(SHAPE.samples, np.float32)


@dataclass
class Page:
    """A page without a browser."""

    ws: Any
    welcome: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, Any]] = field(default_factory=list)
    audio: dict[int, np.ndarray] = field(default_factory=dict)
    video: dict[int, bytes] = field(default_factory=dict)
    code: int | None = None

    async def read(self, until) -> Any:
        """Takes what comes until `until(message)` is true and returns that message; at the end of the socket, None."""
        while True:
            message = await asyncio.wait_for(self.ws.receive(), 20)
            if message.type is WSMsgType.TEXT:
                data = json.loads(message.data)
                self.messages.append(data)
                if until(data):
                    return data
            elif message.type is WSMsgType.BINARY:
                frame = page_frames.unpack(message.data)
                if frame.kind == page_frames.PCM16:
                    self.audio[frame.unit] = media.from_pcm16(frame.body)
                else:
                    self.video[frame.unit] = frame.body
            else:
                self.code = self.ws.close_code
                return None

    async def unit(self, **wanted) -> Any:
        return await self.read(lambda m: m["type"] == "unit" and all(m[k] == v for k, v in wanted.items()))

    async def say(self, pcm: np.ndarray, captured: float = 0.0) -> None:
        await self.ws.send_bytes(page_frames.pack(page_frames.PCM16, 0, media.to_pcm16(pcm), captured))

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [m for m in self.messages if m["type"] == kind]


@pytest.fixture
async def open_page(start_gate):
    """`gate, page = await open_page(fake)`; `open_page(fake, gate, resume=...)` for another one at the same gateway."""

    async def start(fake, gate=None, **hello) -> tuple[Any, Page]:
        gate = gate or await start_gate(fake.url)
        ws = await gate.http.ws_connect(f"{gate.url}/v1/session", protocols=("wan.session.v1",))
        await ws.send_json({"type": "hello", **hello})
        page = Page(ws)
        page.welcome = await page.read(lambda m: True)
        if not page.welcome.get("resumed") and page.welcome["type"] == "welcome":
            await ws.send_bytes(page_frames.pack(page_frames.PCM16, 0, b""))  # no sound, but the conversation begins
        return gate, page

    return start


async def test_what_the_user_says_shows_and_types_arrives_and_comes_back(start_fake, open_page):
    fake, _ = await start_fake(answer=lambda seen: ("speak", "ünit ", seen.pcm, seen.frames))
    _, page = await open_page(fake, video="rgb", options={"seed": 5, "prompt": "kind", "other": 1})
    assert page.welcome["shape"] == {"samples": 2560, "sample_rate": 16_000, "height": 64, "width": 64}
    strip = np.random.default_rng(0).integers(0, 256, SHAPE.frames, np.uint8)
    await page.ws.send_str(json.dumps({"type": "text", "text": " hello "}))
    await page.ws.send_bytes(page_frames.pack(page_frames.RGB, 0, strip.tobytes()))
    await page.say(TONE, captured=1234.5)
    first = await page.unit(unit=0)
    await page.unit(unit=2)
    assert fake.seen[0].options == {"hold_open": True, "resume": True, "seed": 5, "prompt": "kind"}
    assert fake.seen[0].text == "hello"
    np.testing.assert_array_equal(fake.seen[0].frames, strip)
    np.testing.assert_allclose(fake.seen[0].pcm, TONE, atol=1e-4)
    assert first["captured"] == 1234.5
    assert first["ms"]["perform"] == 30.0
    assert not fake.seen[1].pcm.any()
    np.testing.assert_array_equal(fake.seen[1].frames[0], strip[-1])
    np.testing.assert_allclose(page.audio[0], TONE, atol=1e-4)
    assert page.video[0] == strip.tobytes()
    assert [m["text"] for m in page.of("caption")][:2] == ["ünit "] * 2
    await page.ws.send_str('{"type": "end"}')
    await page.read(lambda m: m["type"] == "ended")
    assert await page.read(lambda m: False) is None
    assert page.code == 1000
    assert fake.seen[-1].end


async def test_pictures_travel_as_jpeg_unless_asked_otherwise(start_fake, open_page):
    fake, _ = await start_fake()
    _, page = await open_page(fake)
    smooth = np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None, None].repeat(4, 0).repeat(64, 2).repeat(3, 3)
    await page.ws.send_bytes(page_frames.pack(page_frames.JPEG, 0, media.encode_strip(smooth)))
    await page.say(TONE)
    await page.unit(unit=1)
    strip = np.asarray(Image.open(io.BytesIO(page.video[0]))).reshape(SHAPE.frames)
    assert np.abs(strip.astype(int) - smooth).mean() < 4


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ('{"type": "dance"}', "type: expected text, interrupt"),
        ('{"type": "text", "text": ""}', "text: expected some text"),
        ('{"type": "text", "text": 7}', "text: expected some text"),
        (b"\x01", "frame: expected a head of 16 bytes"),
        (page_frames.pack(page_frames.PCM16, 0, b"\x00" * 3), "audio: expected an even number"),
        (page_frames.pack(page_frames.RGB, 0, b"\x00" * 3), "video: expected 49152 bytes of RGB"),
        (page_frames.pack(page_frames.JPEG, 0, b"no picture"), "video: expected a JPEG"),
        (b"\x09" + bytes(15), "frame: expected kind 1"),
    ],
)
async def test_what_is_wrong_is_said_and_the_conversation_goes_on(start_fake, open_page, message, expected):
    fake, _ = await start_fake()
    _, page = await open_page(fake)
    await (page.ws.send_str(message) if isinstance(message, str) else page.ws.send_bytes(message))
    error = await page.read(lambda m: m["type"] == "error")
    assert error["message"].startswith(expected)
    await page.unit()


@pytest.mark.parametrize("hello", ["no json", "[]", '{"type": "text"}', '{"type": "hello", "video": "gif"}'])
async def test_who_does_not_say_hello_is_sent_away(start_fake, start_gate, hello):
    fake, _ = await start_fake()
    gate = await start_gate(fake.url)
    ws = await gate.http.ws_connect(f"{gate.url}/v1/session")
    await ws.send_str(hello)
    message = await ws.receive(timeout=10)
    assert message.type is WSMsgType.CLOSE
    assert ws.close_code == 1008
    assert "hello" in message.extra
    assert len(gate.desk.book) == 0


async def test_barge_in_is_announced_in_the_unit_in_which_the_agent_yields(start_fake, open_page, lively):
    fake, _ = await start_fake(answer=lively())
    _, page = await open_page(fake)
    for _ in range(2):
        await page.say(TONE)
        await page.unit()
    speaking = await page.unit(state="speak")
    assert not speaking["barge_in"]
    await page.say(TONE)
    stopped = await page.unit(state="listen")
    assert stopped["barge_in"]
    loud = [seen.index for seen in fake.seen if seen.index > 2 and np.abs(seen.pcm).max() > 0.1]
    assert stopped["unit"] == loud[0]


async def test_an_agent_that_simply_finishes_is_not_interrupted(start_fake, open_page):
    fake, _ = await start_fake(
        answer=lambda seen: ("speak" if seen.index in (2, 3) else "listen", "", seen.pcm, seen.frames)
    )
    _, page = await open_page(fake)
    await page.unit(unit=5)
    assert [m["barge_in"] for m in page.of("unit")] == [False] * 6
    assert sorted(page.audio) == list(range(len(page.audio)))


async def test_interrupt_silences_the_rest_of_what_is_said_and_not_what_comes_after(start_fake, open_page):
    fake, _ = await start_fake(
        answer=lambda seen: ("listen" if seen.index in (9, 10) else "speak", f"{seen.index} ", TONE, seen.frames)
    )
    gate, page = await open_page(fake)
    await page.unit(unit=2)
    await page.ws.send_str('{"type": "interrupt"}')
    interrupted = await page.read(lambda m: m["type"] == "interrupted")
    await page.unit(unit=12)
    await page.unit()
    first = interrupted["after"] + 1
    assert not set(page.audio) & set(range(first, 9))
    assert {9, 10, 11, 12} <= set(page.audio)
    spoken = {m["unit"] for m in page.of("caption")}
    assert not spoken & set(range(first, 9))
    assert all(m["muted"] for m in page.of("unit") if first <= m["unit"] < 9)
    assert len([m for m in page.of("unit") if m["unit"] <= 12]) == 13, "state and timings go on"
    found = gate.desk.book.find(page.welcome["session"])
    assert found is not None
    assert found.fence.fenced >= 9 - first


async def test_a_client_that_comes_back_goes_on_where_it_was(start_fake, open_page):
    fake, _ = await start_fake(answer=lambda seen: ("speak", f"w{seen.index} ", TONE, seen.frames))
    gate, page = await open_page(fake)
    await page.ws.send_str('{"type": "text", "text": "hi"}')
    last = await page.unit(unit=YOUNG_UNITS + 1)
    page.ws._response.connection.transport.abort()
    while not gate.desk.book.waiting:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.5)
    sent = len(fake.seen)
    await asyncio.sleep(0.4)
    assert len(fake.seen) == sent, "no unit goes to the model while nobody listens"
    resume = {"session": page.welcome["session"], "after": last["seq"]}
    _, again = await open_page(fake, gate, resume=resume)
    assert again.welcome["resumed"]
    assert again.welcome["missed"] == 0
    assert again.welcome["history"][0] == {"who": "you", "text": "hi"}
    assert again.welcome["history"][1]["text"].startswith("w0 w1 ")
    await again.unit(unit=YOUNG_UNITS + 8)
    units = [m["unit"] for m in again.of("unit")]
    assert units == list(range(YOUNG_UNITS + 2, YOUNG_UNITS + 9)), "nothing is lost and nothing comes twice"
    assert [seen.index for seen in fake.seen] == list(range(len(fake.seen)))
    assert gate.desk.book.count["resumed"] == 1


async def test_another_tab_takes_over_and_the_first_is_told(start_fake, open_page):
    fake, _ = await start_fake()
    gate, page = await open_page(fake)
    await page.unit(unit=YOUNG_UNITS)
    _, other = await open_page(fake, gate, resume={"session": page.welcome["session"], "after": 0})
    assert await page.read(lambda m: False) is None
    assert page.code == 4001
    await other.unit()
    assert len(gate.desk.book) == 1


async def test_who_stays_away_too_long_is_gone_and_hears_so(start_fake, start_gate, open_page):
    fake, _ = await start_fake()
    gate = await start_gate(fake.url, grace=0.2)
    _, page = await open_page(fake, gate)
    await page.unit(unit=YOUNG_UNITS)
    await page.ws.close()
    async with asyncio.timeout(10):
        while not fake.seen[-1].end:
            await asyncio.sleep(0.02)
    assert len(gate.desk.book) == 0
    resume = {"session": page.welcome["session"], "after": 0, "only": True}
    _, late = await open_page(fake, gate, resume=resume)
    assert late.welcome == {"type": "error", "code": "NOT_FOUND", "message": "resume: that session has ended"}


async def test_a_full_gateway_says_so(start_fake, start_gate, open_page):
    fake, _ = await start_fake()
    gate = await start_gate(fake.url, max_calls=1)
    _, page = await open_page(fake, gate)
    _, second = await open_page(fake, gate)
    assert second.welcome["code"] == "RESOURCE_EXHAUSTED"
    assert await second.read(lambda m: False) is None
    assert second.code == 1013
    await page.unit()


async def test_a_server_that_is_not_there_and_one_that_refuses(start_fake, open_page, monkeypatch):
    monkeypatch.setattr("client.web.door.upstream.CONNECT_SECONDS", 0.3)
    fake, _ = await start_fake(errors={0: "RESOURCE_EXHAUSTED: kv pages: expected 40, got 3 free"})
    _, page = await open_page(fake)
    error = await page.read(lambda m: m["type"] == "error")
    assert (error["code"], error["message"]) == ("RESOURCE_EXHAUSTED", "kv pages: expected 40, got 3 free")
    await page.read(lambda m: m["type"] == "ended")
    fake.ready = False
    fake.url = "127.0.0.1:1"
    _, page = await open_page(fake)
    assert page.welcome["code"] == "UNAVAILABLE"


async def test_a_stream_that_breaks_is_mended(start_fake, open_page):
    fake, _ = await start_fake(leave_at=3)
    _, page = await open_page(fake)
    notice = await page.read(lambda m: m["type"] == "notice")
    assert notice["text"].startswith("server: connection lost, resumed after")
    last = len(page.of("unit"))
    await page.unit(unit=last + 4)
    units = [m["unit"] for m in page.of("unit")]
    assert units == list(range(len(units)))
    assert len({seen.session for seen in fake.seen}) == 1


async def test_a_server_that_goes_away_is_announced_twice(start_fake, open_page):
    fake, _ = await start_fake(leaves={2: 30.0, 3: 29.8, 4: 9.9, 5: 9.7})
    _, page = await open_page(fake)
    await page.unit(unit=7)
    told = [m["text"] for m in page.of("notice")]
    assert told == [f"This server is going away: {left} s are left. Then connect again." for left in (30, 10)]


async def test_a_server_that_stays_away_ends_the_conversation_with_its_reason(start_fake, open_page, monkeypatch):
    monkeypatch.setattr("client.web.door.upstream.CONNECT_SECONDS", 0.3)
    fake, server = await start_fake(parameters={"grace_ms": "500"})
    gate, page = await open_page(fake)
    await page.unit(unit=2)
    await server.stop(0)
    error = await page.read(lambda m: m["type"] == "error")
    assert error["code"] == "UNAVAILABLE"
    assert await page.read(lambda m: False) is None
    assert len(gate.desk.book) == 0
    _, again = await open_page(fake, gate)
    assert again.welcome["code"] == "UNAVAILABLE"


async def test_a_prompt_that_is_unknown_is_not_given_and_the_page_hears_which_is_in_force(start_fake, open_page):
    fake, _ = await start_fake(parameters={"prompts": '["english", "german"]'})
    _, page = await open_page(fake, options={"prompt": "Be brief."})
    assert page.welcome["prompt"] == {"in_force": "english", "known": ["english", "german"]}
    await page.ws.send_str('{"type": "text", "text": "%s"}' % ("x" * 1025))
    error = await page.read(lambda m: m["type"] == "error")
    assert error["message"] == "text: expected at most 1024 bytes waiting to be read, got 1025"
    await page.unit()
    assert fake.seen[0].options["prompt"] == "english"
