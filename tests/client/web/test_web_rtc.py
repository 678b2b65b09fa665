"""WebRTC: aiortc, as a client of the gateway, talks and listens over real media tracks and a data channel."""

from __future__ import annotations

import asyncio
import fractions
import json
from typing import Any

import aioice.ice
import numpy as np
import pytest
from aiortc import RTCPeerConnection, RTCRtpSender, RTCSessionDescription
from aiortc.mediastreams import MediaStreamTrack
from av import AudioCodecContext, AudioFrame, Packet, VideoFrame

from client.web.call.fence import Fence
from client.web.rtc.calls import offer_addresses
from client.web.rtc.playout import FRAME, LEAD, RATE, Playout
from client.web.rtc.tracks import HANG, PACKET, Voice

pytestmark = pytest.mark.unit


class Tone(MediaStreamTrack):
    """20 ms of a tone at a time, for as long as `loud`."""

    kind = "audio"
    loud = False
    place = 0

    async def recv(self) -> AudioFrame:
        await asyncio.sleep(0.02)
        n = np.arange(self.place, self.place + 960)
        wave = np.sin(n * 2 * np.pi * 300 / RATE) * 8000 * self.loud
        frame = AudioFrame.from_ndarray(wave.astype("<i2").reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, self.place, fractions.Fraction(1, RATE)
        self.place += 960
        return frame


class Red(MediaStreamTrack):
    kind = "video"
    place = 0

    async def recv(self) -> VideoFrame:
        await asyncio.sleep(0.04)
        rgb = np.zeros((96, 128, 3), np.uint8)
        rgb[..., 0] = 220
        frame = VideoFrame.from_ndarray(rgb, format="rgb24")
        frame.pts, frame.time_base = self.place, fractions.Fraction(1, 90_000)
        self.place += 3600
        return frame


class Browser:
    """What a page does with RTCPeerConnection."""

    def __init__(self) -> None:
        self.pc = RTCPeerConnection()
        self.tone = Tone()
        self.sound: list[np.ndarray] = []
        self.pictures: list[np.ndarray] = []
        self.events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.tasks: list[asyncio.Task[None]] = []
        self.channel = self.pc.createDataChannel("oai-events")
        self.channel.on("message", lambda data: self.events.put_nowait(json.loads(data)))
        self.pc.addTrack(self.tone)
        self.pc.addTrack(Red())
        self.pc.on("track", lambda track: self.tasks.append(asyncio.create_task(self._play(track))))

    async def offer(self) -> str:
        await self.pc.setLocalDescription(await self.pc.createOffer())
        return self.pc.localDescription.sdp

    async def accept(self, answer: str) -> None:
        await self.pc.setRemoteDescription(RTCSessionDescription(answer, "answer"))

    async def _play(self, track: MediaStreamTrack) -> None:
        while True:
            frame: Any = await track.recv()
            if track.kind == "audio":
                self.sound.append(frame.to_ndarray())
            else:
                self.pictures.append(frame.to_ndarray(format="rgb24"))

    def loud(self) -> bool:
        return any(np.abs(part).max() > 1000 for part in self.sound)

    async def until(self, kind: str) -> dict[str, Any]:
        async with asyncio.timeout(20):
            while (event := await self.events.get())["type"] != kind:
                pass
        return event

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await self.pc.close()


@pytest.fixture
async def browser():
    offer_addresses("127.0.0.1")
    browser = Browser()
    yield browser
    await browser.close()


async def _until(what: Any) -> None:
    async with asyncio.timeout(20):
        while not what():
            await asyncio.sleep(0.02)


async def test_a_realtime_call_talks_listens_and_hangs_up(start_fake, start_gate, lively, browser):
    fake, _ = await start_fake(answer=lively())
    gate = await start_gate(fake.url)
    offer = await browser.offer()
    headers = {"Content-Type": "application/sdp"}
    async with gate.http.post(f"{gate.url}/v1/realtime/calls", data=offer, headers=headers) as response:
        assert response.status == 201
        place, answer = response.headers["Location"], await response.text()
    assert {line.split()[4] for line in answer.splitlines() if line.startswith("a=candidate")} == {"127.0.0.1"}
    await browser.accept(answer)
    await browser.until("session.created")
    browser.tone.loud = True
    await browser.until("input_audio_buffer.speech_started")
    browser.tone.loud = False
    await browser.until("response.created")
    assert not browser.loud(), "it speaks after the user only"
    await _until(browser.loud)
    await _until(lambda: any(picture.shape == (64, 64, 3) for picture in browser.pictures))
    assert fake.seen[-1].frames[0, 30, 30].tolist() == pytest.approx([220, 0, 0], abs=30), "the camera"
    async with gate.http.post(f"{gate.url}{place}/hangup") as response:
        assert response.status == 200
    await _until(lambda: browser.pc.connectionState == "closed" or not len(gate.desk.book))


async def test_what_is_cancelled_is_not_played_though_the_model_goes_on(start_fake, start_gate, lively, browser):
    fake, _ = await start_fake(answer=lively(always=True))
    gate = await start_gate(fake.url)
    async with gate.http.post(f"{gate.url}/v1/realtime/calls", data={"sdp": await browser.offer()}) as response:
        await browser.accept(await response.text())
    await _until(browser.loud)
    browser.channel.send(json.dumps({"type": "response.cancel"}))
    assert (await browser.until("response.done"))["response"]["status"] == "cancelled"

    def quiet() -> bool:
        last, browser.sound = browser.sound[-25:], browser.sound[-25:]
        return len(last) == 25 and max(np.abs(part).max() for part in last) < 100

    await _until(quiet)  # half a second; it speaks without end


async def test_a_live_session_by_the_sdks_way_to_create_one(start_fake, start_gate, lively, browser):
    from openai import AsyncOpenAI

    fake, _ = await start_fake(answer=lively(always=True))
    gate = await start_gate(fake.url)
    sdk = AsyncOpenAI(base_url=f"{gate.url}/v1", api_key="-", max_retries=0)
    offer = await browser.offer()
    created = await sdk.live.create(session={"model": "x"}, transport={"type": "webrtc", "sdp": offer})
    await browser.accept(created.transport.sdp)
    started = await browser.until("session.started")
    assert started["session"]["id"] == created.session.id
    await browser.until("session.output_transcript.delta")
    await _until(browser.loud)
    browser.channel.send(json.dumps({"type": "session.close"}))
    assert (await browser.until("session.closed"))["reason"] == "close_requested"
    await sdk.close()


@pytest.mark.parametrize(("codecs", "status"), [(("PCMU", "opus"), 201), (("PCMU",), 400)])
async def test_sound_is_opus_whatever_a_client_would_rather_have(start_fake, start_gate, browser, codecs, status):
    """The gateway's packets are Opus already; as another codec's they would be noise."""
    fake, _ = await start_fake()
    gate = await start_gate(fake.url)
    known = {codec.mimeType.split("/")[1]: codec for codec in RTCRtpSender.getCapabilities("audio").codecs}
    browser.pc.getTransceivers()[0].setCodecPreferences([known[name] for name in codecs])
    headers = {"Content-Type": "application/sdp"}
    async with gate.http.post(f"{gate.url}/v1/realtime/calls", data=await browser.offer(), headers=headers) as response:
        answer = await response.text()
    assert response.status == status, answer
    assert ("opus/48000" in answer, "PCMU" in answer) == (status == 201, False)


async def test_a_client_that_goes_leaves_nothing(start_fake, start_gate, lively, browser):
    fake, _ = await start_fake(answer=lively())
    gate = await start_gate(fake.url, grace=0.2)
    async with gate.http.post(
        f"{gate.url}/v1/realtime/calls", data={"sdp": await browser.offer(), "session": '{"type": "realtime"}'}
    ) as response:
        await browser.accept(await response.text())
    await browser.until("session.updated")
    await browser.close()
    await _until(lambda: len(gate.desk.book) == 0)


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("realtime/calls", b"nonsense", "sdp: expected an offer"),
        ("session/calls", b'{"hello": 5}', "hello: expected it"),
        ("session/calls", b'{"hello": {"type": "hello"}, "sdp": "x"}', "sdp: expected an offer"),
        ("live/sessions", b"[]", "body: expected a JSON object"),
        ("live/sessions", b'{"session": {}, "transport": {"type": "sip"}}', "transport: expected"),
        ("live/sessions", b'{"session": {}, "transport": {"type": "webrtc", "sdp": "x"}}', "session.model: expected"),
        (
            "live/sessions",
            b'{"session": {"model": "x", "audio": {"format": {"type": "audio/pcmu"}}},'
            b' "transport": {"type": "webrtc", "sdp": "x"}}',
            "session.audio.format: WebRTC",
        ),
        ("live/sessions", b'{"session": {"model": "x"}, "transport": {"type": "webrtc", "sdp": "x"}}', "sdp: expected"),
    ],
)
async def test_offers_that_are_none_are_refused_and_leave_nothing(start_fake, start_gate, path, body, expected):
    fake, _ = await start_fake()
    gate = await start_gate(fake.url)
    headers = {"Content-Type": "application/sdp"}
    async with gate.http.post(f"{gate.url}/v1/{path}", data=body, headers=headers) as response:
        assert response.status == 400
        assert json.loads(await response.text())["error"]["message"].startswith(expected)
    await _until(lambda: len(gate.desk.book) == 0)
    assert not fake.seen


async def test_the_page_resumes_over_webrtc_and_the_one_before_is_told(start_fake, start_gate, lively, browser):
    fake, _ = await start_fake(answer=lively(always=True))
    gate = await start_gate(fake.url)
    again = Browser()
    try:
        hello: dict[str, Any] = {"type": "hello", "options": {}}
        for each in (browser, again):
            body = {"sdp": await each.offer(), "hello": hello}
            async with gate.http.post(f"{gate.url}/v1/session/calls", json=body) as response:
                answer = await response.json()
            await each.accept(answer["sdp"])
            welcome = await each.until("welcome")
            assert welcome["session"] == answer["session"]
            assert welcome["resumed"] == (each is again)
            while (unit := await each.until("unit"))["unit"] < (20 if each is again else 8):
                pass
            hello = {"type": "hello", "resume": {"session": answer["session"], "after": unit["seq"], "only": True}}
        assert (await browser.until("bye"))["code"] == 4001
        await _until(again.loud)
        again.channel.send(json.dumps({"type": "end"}))
        assert (await again.until("bye"))["code"] == 1000
        assert [seen.index for seen in fake.seen] == list(range(len(fake.seen)))
    finally:
        await again.close()


@pytest.mark.parametrize("way", ["realtime/calls", "live/sessions", "session/calls"])
async def test_candidates_that_come_later_are_refused_with_the_reason(start_fake, start_gate, way):
    fake, _ = await start_fake()
    gate = await start_gate(fake.url)
    async with gate.http.patch(f"{gate.url}/v1/{way}/x", data=b"a=candidate") as response:
        assert response.status == 400
        assert "candidates: expected none" in await response.text()


def test_other_hosts_offer_their_own_addresses():
    offer_addresses("0.0.0.0")
    assert "127.0.0.1" not in aioice.ice.get_host_addresses(True, False)
    offer_addresses("127.0.0.1")
    assert aioice.ice.get_host_addresses(True, True) == ["127.0.0.1"]


# -- one clock ----------------------------------------------------------------------------------------------------
UNIT = round(0.16 * RATE)


def test_pictures_come_with_the_sound_of_their_unit():
    playout = Playout(Fence())
    for number in (1, 2):
        playout.show(np.full((4, 2, 2, 3), number, np.uint8))
        playout.say(np.full(UNIT, number, np.float32), 0)
    seen = [(playout.taken, float(playout.take(480)[0]), playout.picture()) for _ in range((LEAD + 2 * UNIT) // 480)]
    first = {number: next(at for at, sound, _ in seen if sound == number) for number in (1, 2)}
    assert first == {1: LEAD, 2: LEAD + UNIT}
    for number in (1, 2):
        shown = next(at for at, _, picture in seen if picture is not None and picture[0, 0, 0] == number)
        assert abs(shown - first[number]) <= FRAME, "within one picture"


def test_an_interruption_takes_what_waits():
    fence = Fence()
    playout = Playout(fence)
    playout.say(np.ones(UNIT, np.float32), fence.epoch)
    fence.cut(0)
    assert not playout.take(2 * UNIT).any()
    playout.say(np.ones(UNIT, np.float32), fence.epoch)
    assert playout.take(2 * UNIT).sum() == UNIT


def _play(playout: Playout, seconds: float, late: Any = lambda unit: 0.0, level: float = 0.5) -> list[int]:
    """Units that come in real time, some late; how many samples waited after each."""
    waited: list[int] = []
    due = [playout.taken + (unit + 1) * UNIT + round(late(unit) * RATE) for unit in range(round(seconds / 0.16))]
    while len(waited) < len(due):
        while len(waited) < len(due) and due[len(waited)] <= playout.taken:
            playout.say(np.full(UNIT, level, np.float32), 0)
            waited.append(playout._waiting - UNIT)
        playout.take(480)
    return waited


def test_the_lead_follows_the_lateness_of_units():
    playout = Playout(Fence())
    _play(playout, 4)
    assert playout.lead == LEAD, "a calm server has a short one"
    gaps = _play(playout, 10, late=lambda unit: 0.05 * (unit % 5 == 4))
    assert playout.lead > LEAD
    assert min(gaps[30:]) > 0, "then nothing is late any more"
    _play(playout, 45)
    assert playout.lead == LEAD


def test_a_unit_that_is_late_in_a_pause_is_not_late():
    """Nobody hears a gap in silence; what it cost was 20 ms of every answer in the next 20 s."""
    playout = Playout(Fence())
    _play(playout, 10, late=lambda unit: 0.05 * (unit % 5 == 4), level=0.0)
    assert playout.lead == LEAD


def test_a_unit_that_is_late_before_a_word_leaves_no_lead():
    """Nobody hears how long the pause before an answer was, and one of 10 ms within it asks for no more than 10."""
    playout = Playout(Fence())
    for place in range(4):
        playout.say(np.full(UNIT, 0.5 if place == 3 else 0.0, np.float32), 0)
        playout.take(UNIT + LEAD + (960 if place < 3 else 480))
    assert playout.lead == LEAD
    playout.say(np.full(UNIT, 0.5, np.float32), 0)
    assert playout.lead == LEAD + 480


async def test_little_is_sent_of_a_pause_to_who_wants_that_and_a_word_begins_at_once():
    """A browser's jitter buffer begins anew after a pause; else it keeps the delay that it once had."""
    playout = Playout(Fence())
    voice = Voice(playout, pauses=True)
    packets = [await voice.recv() for _ in range(HANG // PACKET)]
    assert [packet.pts for packet in packets] == list(range(0, HANG, PACKET)), "not of a short one"
    packets = [await voice.recv() for _ in range(2)]
    assert [(packet.pts, len(bytes(packet))) for packet in packets] == [(HANG, 1), (HANG + PACKET, 1)]
    playout.say(np.full(UNIT, 0.5, np.float32), 0)
    word = await voice.recv()
    assert (word.pts, len(bytes(word)) > 20) == (HANG + 2 * PACKET, True)


async def test_sound_leaves_as_soon_as_it_is_there():
    """The look-ahead of a telephone's encoder and a longer lead came on top of each answer."""
    playout, ear = Playout(Fence()), AudioCodecContext.create("libopus", "r")
    ear.format, ear.layout, ear.sample_rate = "s16", "mono", RATE
    voice = Voice(playout)
    heard: list[np.ndarray] = []
    for place in range(8):
        if place == 1:
            playout.say(np.full(UNIT, 0.5, np.float32), 0)
        packet = await voice.recv()
        assert (packet.pts, packet.time_base, packet.duration) == (place * PACKET, fractions.Fraction(1, RATE), PACKET)
        packet = Packet(bytes(packet))
        heard += [frame.to_ndarray().reshape(-1) for frame in ear.decode(packet)]
    first = int(np.argmax(np.abs(np.concatenate(heard)) > 0.25 * 32768))
    assert first - PACKET <= LEAD + round(0.003 * RATE)


def test_pauses_take_up_what_a_stall_left_behind():
    playout = Playout(Fence())
    _play(playout, 2)
    stalled = _play(playout, 4, late=lambda unit: max(0.0, 1.0 - 0.16 * unit))
    assert stalled[-1] > 0.2 * RATE
    assert _play(playout, 4, level=0.0)[-1] <= playout.lead + 480


def test_a_client_that_takes_nothing_costs_no_memory():
    playout = Playout(Fence())
    for _ in range(100):
        playout.show(np.zeros((4, 2, 2, 3), np.uint8))
        playout.say(np.ones(UNIT, np.float32), None)
    assert playout._waiting <= 2 * RATE
    assert len(playout._frames) <= 50
