"""A gateway in this process, and an agent worth looking at: it listens, answers after a pause and yields the floor."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from aiohttp import ClientSession, web
from PIL import Image, ImageDraw

from client.web.call.call_book import CallBook
from client.web.door.access import Access
from client.web.door.desk import DESK, Desk
from client.web.door.upstream import Upstream
from client.web.gateway import make_app, make_runner

SENTENCES = "I hear you and I can see you too. Say something while I talk and I will stop at once. "
ANSWER_UNITS = 24
HEARD = 0.01  # RMS of a user who speaks


@dataclass
class _Talk:
    """One session of the lively agent."""

    units: int = 0
    speaking: int = 0  # units of the present answer that are left
    heard: bool = False
    quiet: int = 0
    word: int = 0


@dataclass
class Lively:
    """`answer` of the fake server: speaks when the user pauses (or types), stops as soon as the user speaks."""

    samples: int = 2560
    always: bool = False  # speaks from the first unit on, whatever the user does
    talks: dict[Any, _Talk] = field(default_factory=dict)

    def __call__(self, seen: Any) -> tuple[str, str, np.ndarray, np.ndarray]:
        talk = self.talks.setdefault(seen.session, _Talk())
        loud = float(np.sqrt(np.mean(np.square(seen.pcm)))) > HEARD
        talk.quiet = 0 if loud else talk.quiet + 1
        talk.heard = talk.heard or loud
        if self.always:
            talk.speaking = 2
        elif talk.speaking and loud:
            talk.speaking = 0
        elif not talk.speaking and (seen.text or (talk.heard and talk.quiet >= 2)):
            talk.speaking, talk.heard = ANSWER_UNITS, False
        speaks = talk.speaking > 0
        t = (np.arange(self.samples) + talk.units * self.samples) / 16_000
        syllables = np.clip(np.sin(2 * np.pi * 3.1 * t), 0, 1) ** 0.7 * float(speaks)
        voice = sum(np.sin(2 * np.pi * 140 * k * t) / k for k in range(1, 6)) * 0.16
        text = ""
        if speaks:
            talk.speaking -= 1
            if talk.units % 2 == 0:
                words = SENTENCES.split()
                text = words[talk.word % len(words)] + " "
                talk.word += 1
        mouth = syllables.reshape(4, -1).max(axis=1)
        shape = seen.frames.shape
        frames = np.stack([face(shape[1], talk.units * 4 + i, round(5 * float(m))) for i, m in enumerate(mouth)])
        talk.units += 1
        return ("speak" if speaks else "listen"), text, (syllables * voice).astype(np.float32), frames


def face(size: int, frame: int, mouth: int) -> np.ndarray:
    """uint8 [size, size, 3]: sways once in 4 s, blinks every 3 s; mouth 0 (closed) to 5."""
    sway = round(6 * math.sin(2 * math.pi * frame / 100))
    return _face(size, sway, frame % 75 < 4, mouth)


@functools.lru_cache(maxsize=512)
def _face(size: int, sway: int, blink: bool, mouth: int) -> np.ndarray:
    image = Image.new("RGB", (256, 256), (38, 52, 66))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 256, 90), fill=(52, 70, 84))
    x = 128 + sway
    draw.ellipse((x - 100, 205, x + 100, 380), fill=(66, 98, 122))
    draw.ellipse((x - 30, 165, x + 30, 235), fill=(196, 148, 120))
    draw.ellipse((x - 64, 40, x + 64, 200), fill=(222, 176, 146))
    draw.pieslice((x - 70, 26, x + 70, 150), 180, 360, fill=(74, 52, 40))
    for eye in (x - 26, x + 26):
        height = 1 if blink else 7
        draw.ellipse((eye - 9, 108 - height, eye + 9, 108 + height), fill=(250, 250, 246))
        if not blink:
            draw.ellipse((eye - 5, 103, eye + 5, 113), fill=(46, 60, 74))
    draw.ellipse((x - 22, 160 - 1 - 3 * mouth, x + 22, 162 + 3 * mouth), fill=(134, 60, 58))
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS), dtype=np.uint8)


@dataclass
class Gate:
    """A running gateway."""

    desk: Desk
    port: int
    server: web.Server
    http: ClientSession

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture
def lively() -> Callable[..., Lively]:
    return Lively


@pytest.fixture
async def start_gate() -> AsyncIterator[Callable[..., Awaitable[Gate]]]:
    """`gate = await start_gate(fake.url, access=..., max_calls=..., grace=...)`; stopped at the end of the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(
            upstream: str, *, access: Access | None = None, max_calls: int = 64, grace: float = 5.0, port: int = 0
        ) -> Gate:
            rules = access or Access()
            app = make_app(rules, Upstream(upstream, "duplex"), CallBook(max_calls, grace))
            runner = make_runner(app, shutdown_timeout=0.2)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", port, ssl_context=rules.ssl_context()).start()
            http = await stack.enter_async_context(ClientSession())
            return Gate(app[DESK], runner.addresses[0][1], runner.server, http)

        yield start
