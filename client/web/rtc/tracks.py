"""The two tracks that a peer plays: both read one Playout, and their timestamps are its clock."""

from __future__ import annotations

import asyncio
import fractions
import time

import numpy as np
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from av import AudioFrame, VideoFrame

from client.stream import UnitShape

from ..media import to_pcm16
from .playout import FRAME, RATE, Playout

PACKET = RATE // 50  # samples: 20 ms
VIDEO_CLOCK = 90_000
LOOK_SECONDS = 0.01
GREY = 128


class Voice(MediaStreamTrack):
    """20 ms at a time, in real time; it moves the clock."""

    kind = "audio"

    def __init__(self, playout: Playout) -> None:
        super().__init__()
        self._playout = playout
        self._begin: float | None = None

    async def recv(self) -> AudioFrame:
        if self.readyState != "live":
            raise MediaStreamError
        place = self._playout.taken
        if self._begin is None:
            self._begin = time.monotonic() - place / RATE
        await asyncio.sleep(self._begin + place / RATE - time.monotonic())
        pcm = np.frombuffer(to_pcm16(self._playout.take(PACKET)), "<i2").reshape(1, -1)
        frame = AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, place, fractions.Fraction(1, RATE)
        return frame


class Face(MediaStreamTrack):
    """A picture every 40 ms."""

    kind = "video"

    def __init__(self, playout: Playout, shape: UnitShape) -> None:
        super().__init__()
        self._playout = playout
        self._last = -FRAME
        self._nobody = np.full((shape.height, shape.width, 3), GREY, np.uint8)

    async def recv(self) -> VideoFrame:
        if self.readyState != "live":
            raise MediaStreamError
        due = self._last + FRAME
        while self._playout.taken < due:
            await asyncio.sleep(LOOK_SECONDS)
        self._last = max(due, self._playout.taken - FRAME)  # pictures that nobody had time for are not made up for
        picture = self._playout.picture()
        frame = VideoFrame.from_ndarray(self._nobody if picture is None else picture, format="rgb24")
        frame.pts, frame.time_base = self._last * VIDEO_CLOCK // RATE, fractions.Fraction(1, VIDEO_CLOCK)
        return frame
