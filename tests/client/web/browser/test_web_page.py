"""The page in a real browser with a fake microphone and camera: 20 s of conversation, and what may happen in it.

Screenshots go to build/runs/web/.
"""

from __future__ import annotations

import asyncio
import json
import re
import wave
from pathlib import Path

import numpy as np
import pytest

from client import demo, own_server
from client.media.sound import read_audio
from client.web.rtc.peer import Peer

pytestmark = pytest.mark.server
ROOT = Path(__file__).parents[4]
SHOTS = ROOT / "build" / "runs" / "web"
SHEET = ROOT / "client" / "web" / "static" / "style.css"
PICTURE = """(() => {
  const canvas = document.createElement('canvas');
  const pen = canvas.getContext('2d');
  pen.drawImage(document.getElementById('face').hidden ? agent : face, 0, 0, canvas.width, canvas.height);
  const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
  let sum = 0; const seen = new Set();
  for (let i = 0; i < data.length; i += 4 * 97) {
    sum = (sum * 31 + data[i] + data[i + 1]) % 1000003;
    seen.add(data[i]);
  }
  return [sum, seen.size];
})()"""
STRIP_COLOURS = """(() => {
  const canvas = document.getElementById('strip');
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  const seen = new Set();
  for (let i = 0; i < data.length; i += 4) if (data[i + 3] === 255) seen.add(data.slice(i, i + 3).join());
  return seen.size;
})()"""
OVER_WEBRTC = "Connected over WebRTC"
NAMELESS = """[...document.querySelectorAll('button, input, textarea, canvas, video')].filter((e) => !(
  e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length)).map((e) => e.outerHTML)"""


@pytest.fixture
def microphone(tmp_path: Path) -> Path:
    """The recorded man of the demo, whose pauses let the agent answer and whose next sentence interrupts it."""
    pcm = read_audio(demo.MEDIA / "user_speech.flac", 48_000)
    path = tmp_path / "microphone.wav"
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(48_000)
        out.writeframes((pcm * 32767).astype("<i2").tobytes())
    return path


async def _wide(tab, width: int) -> None:
    """Nothing sticks out at that width."""
    await tab.resize(width, 844, phone=width < 600)
    assert await tab.run("document.documentElement.scrollWidth <= innerWidth"), f"the page is wider than {width} px"


async def test_a_conversation_of_twenty_seconds(start_fake, start_gate, lively, browse, microphone):
    fake, _ = await start_fake(answer=lively(), delay=lambda unit: 0.04, heard={1: " two", 3: " three", 30: " four"})
    gate = await start_gate(fake.url, grace=20.0)
    tab = await browse(microphone=microphone)
    await tab.resize(1280, 900)
    await tab.open(f"{gate.url}/")
    assert await tab.run(NAMELESS) == []
    await tab.screenshot(SHOTS / "idle.png")
    await tab.run("document.getElementById('start').click()")
    await tab.until("wan.stats().phase === 'live' && wan.stats().units >= 5")
    assert await tab.run("document.getElementById('status').textContent") == OVER_WEBRTC

    # Pictures change and the voice is heard.
    await tab.until("wan.stats().player.peak > 0.02")
    pictures = set()
    for _ in range(6):
        checksum, colours = await tab.run(PICTURE)
        assert colours > 10
        pictures.add(checksum)
        await asyncio.sleep(0.2)
    assert len(pictures) >= 3

    # The man's next sentence interrupts the agent; the stream is quiet before the next unit is there.
    flush = await tab.until("wan.stats().flush", 25)
    assert flush["during"] - flush["unit"] <= 1, flush
    yielded = next(seen for seen in fake.seen if seen.index == flush["unit"])
    assert np.abs(yielded.pcm).max() > 0.02, "the agent yields in the unit in which the man speaks"
    assert np.unique(fake.seen[-1].frames).size > 3, "the camera arrives"

    # What the agent heard stands as the user's line.
    lines = await tab.run("[...log.children].filter((l) => l.className === 'you').map((l) => l.textContent)")
    assert lines == ["Youtwo three", "Youfour"]

    # The strip fills.
    await tab.until("wan.stats().units >= 125", 40)
    assert await tab.run("wan.stats().strip") >= 125
    assert await tab.run(STRIP_COLOURS) >= 8
    assert re.fullmatch(r"\d+ units, \d+ on time, median response \d+ ms", await tab.run("summary.textContent"))
    await tab.screenshot(SHOTS / "desktop.png")
    await _wide(tab, 320)
    await _wide(tab, 390)
    await asyncio.sleep(0.4)
    await tab.screenshot(SHOTS / "phone.png")
    dark = [{"name": "prefers-color-scheme", "value": "dark"}, {"name": "prefers-reduced-motion", "value": "reduce"}]
    await tab.call("Emulation.setEmulatedMedia", features=dark)
    await asyncio.sleep(0.4)
    await tab.screenshot(SHOTS / "phone-dark.png")
    await tab.call("Emulation.setEmulatedMedia", features=[])

    # A reload goes on with the same session and transcript.
    turns = await tab.run("log.children.length")
    session = await tab.run("wan.stats().session")
    heard = len(fake.seen)
    await tab.call("Page.reload")
    await tab.until("window.wan && wan.stats().resumes === 1 && wan.stats().units >= 5")
    assert await tab.run("wan.stats().session") == session
    assert await tab.run("log.children.length") >= turns - 1
    assert len(fake.seen) > heard
    assert [seen.index for seen in fake.seen] == list(range(len(fake.seen)))
    assert len({seen.session for seen in fake.seen}) == 1
    assert tab.console == []

    await tab.run("document.getElementById('end').click()")
    await tab.until("document.getElementById('status').textContent === 'The conversation has ended'")
    assert fake.seen[-1].end
    assert len(gate.desk.book) == 0
    assert await tab.run("sessionStorage.getItem('wan-session')") is None


# A machine whose camera is missing; what its microphone gave is in `tracks`, what the page said in `told`.
NO_CAMERA = """
window.tracks = [], window.told = [];
const line = document.getElementById("notice");
new MutationObserver(() => told.push(line.textContent)).observe(line, { childList: true });
const real = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
navigator.mediaDevices.getUserMedia = async (wanted) => {
  if (wanted.video) throw new DOMException("none here", "NotFoundError");
  const stream = await real(wanted);
  tracks.push(...stream.getTracks());
  return stream;
};
"""


async def test_typing_muting_interrupting_and_a_lost_connection(start_fake, start_gate, lively, browse, microphone):
    fake, _ = await start_fake(answer=lively(always=True))
    gate = await start_gate(fake.url, grace=20.0)
    tab = await browse(microphone=microphone)
    await tab.open(f"{gate.url}/")
    await tab.run(NO_CAMERA)
    await tab.run("webrtc.click(); document.querySelector('input[value=camera]').click()")
    await tab.run("document.getElementById('start').click()")
    await tab.until("wan.stats().player && wan.stats().player.rms > 0.01")
    assert await tab.run("document.getElementById('self').hidden")
    await tab.run("tracks[0].stop(); tracks[0].onended()")  # unplugged
    await tab.until("tracks.length === 2 && document.getElementById('notice').hidden")
    told = await tab.run("told")
    assert "No camera (none here)." in told
    assert "The microphone has gone. It is used again when it is back." in told
    heard = len(fake.seen)
    async with asyncio.timeout(20):
        while not any(np.abs(seen.pcm).max() > 0.01 for seen in fake.seen[heard:]):
            await asyncio.sleep(0.1)

    await tab.run("document.getElementById('text').value = 'hällo <b>'; document.querySelector('#say button').click()")
    await tab.until("log.lastChild && log.lastChild.className === 'you'")
    assert (await tab.run("log.lastChild.textContent")) == "Youhällo <b>"
    async with asyncio.timeout(20):
        while "hällo <b>" not in {seen.text for seen in fake.seen}:
            await asyncio.sleep(0.1)

    await tab.run("document.getElementById('mute').click()")
    assert await tab.run("document.getElementById('mute').getAttribute('aria-pressed')") == "true"
    muted = len(fake.seen) + 3
    async with asyncio.timeout(20):
        while len(fake.seen) < muted + 5:
            await asyncio.sleep(0.1)
    assert max(np.abs(seen.pcm).max() for seen in fake.seen[muted:]) < 1e-3

    frames = await tab.run("wan.stats().frames")
    for kind in ("rawKeyDown", "keyUp"):
        await tab.call("Input.dispatchKeyEvent", type=kind, key="Escape", code="Escape", windowsVirtualKeyCode=27)
    await tab.until("wan.stats().player.flushes === 1")
    await tab.until("wan.stats().player.rms === 0")
    units = await tab.run("wan.stats().units")
    await tab.until(f"wan.stats().units > {units + 6}")
    assert await tab.run("wan.stats().player.rms") == 0, "what was cancelled is not heard, however long it goes on"
    assert await tab.run("wan.stats().frames") > frames, "the picture goes on"

    # The network breaks: the page comes back by itself and no unit is lost or sent twice.
    for connection in list(gate.server.connections):
        if connection.transport is not None and not connection.transport.is_closing():
            connection.transport.abort()
    await tab.until("wan.stats().resumes === 1")
    units = await tab.run("wan.stats().units")
    await tab.until(f"wan.stats().units > {units + 3}")
    assert await tab.run("document.getElementById('status').textContent") == "Connected over WebSocket"
    assert [seen.index for seen in fake.seen] == list(range(len(fake.seen)))

    # The server goes away for good: said once, in words.
    fake.errors[len(fake.seen) + 2] = "INTERNAL: perform: the engine failed"
    await tab.until("!document.getElementById('notice').hidden")
    assert "the engine failed" in await tab.run("document.getElementById('notice').textContent")
    assert await tab.run("!document.getElementById('start').hidden")
    assert all("WebSocket" in line or "ERR_" in line for line in tab.console), tab.console


async def test_without_a_way_for_webrtc_the_page_goes_on_over_websocket(
    start_fake, start_gate, lively, browse, monkeypatch
):
    async def nowhere(self: Peer, offer: str) -> str:
        return re.sub(r"(a=candidate:.* 127\.0\.0\.1) \d+", r"\1 9", await answer(self, offer))

    answer = Peer.answer
    monkeypatch.setattr(Peer, "answer", nowhere)
    fake, _ = await start_fake(answer=lively(always=True))
    gate = await start_gate(fake.url)
    tab = await browse()
    await tab.open(f"{gate.url}/")
    await tab.run("document.getElementById('start').click()")
    await tab.until("wan.stats().units >= 5 && wan.stats().player.peak > 0.02")
    assert await tab.run("document.getElementById('status').textContent") == "Connected over WebSocket"
    assert len({seen.session for seen in fake.seen}) == 1
    assert len(gate.desk.book) == 1
    assert tab.console == []


async def test_the_page_with_a_real_server(mini_engines, start_gate, browse, microphone, tmp_path):
    with own_server.server(mini_engines, tmp_path / "server") as facts:
        gate = await start_gate(facts["grpc"])
        tab = await browse(microphone=microphone)
        await tab.resize(1280, 900)
        await tab.open(f"{gate.url}/")
        await tab.run("document.getElementById('start').click()")
        await tab.until("wan.stats().units >= 25", 40)
        stats = await tab.stats()
        assert stats["player"]["peak"] > 0
        assert stats["strip"] >= 25
        assert stats["frames"] > 10
        assert await tab.run(STRIP_COLOURS) >= 8
        await tab.screenshot(SHOTS / "real-server.png")
        await tab.run("document.getElementById('end').click()")
        await tab.until("wan.stats().phase === 'ended'")
        assert tab.console == []
    assert json.dumps(gate.desk.stats())


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_have_contrast(theme):
    blocks = re.findall(r":root \{(.*?)\}", SHEET.read_text(), re.DOTALL)
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", blocks[theme == "dark"]))
    for text, ground in (
        *(("ink", "paper"), ("ink", "sheet"), ("soft", "paper"), ("soft", "sheet"), ("on-accent", "accent")),
        *(("alert", "alert-paper"), ("paper", "ink")),
    ):
        low, high = sorted((_luminance(colours[text]), _luminance(colours[ground])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (theme, text, ground)
    for stage in ("wait", "perceive", "think", "perform", "render", "network", "deadline", "accent"):
        low, high = sorted((_luminance(colours[stage]), _luminance(colours["sheet"])))
        assert (high + 0.05) / (low + 0.05) >= (2.2 if stage == "perform" else 2.9), (theme, stage)
