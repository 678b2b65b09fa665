"""The two tracks that a peer plays: both read one Playout, and their timestamps are its clock."""

from __future__ import annotations

import asyncio
import fractions
import time

import numpy as np
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from av import AudioCodecContext, AudioFrame, Packet, VideoFrame

from client.stream import UnitShape

from .playout import FRAME, RATE, Playout

PACKET = RATE // 50  # samples: 20 ms; half of it was no faster and twice the work
BITS = 64_000  # a second; one channel of CELT
CLOCK = fractions.Fraction(1, RATE)
VIDEO_CLOCK = 90_000
LOOK_SECONDS = 0.01
HANG, REMIND = RATE // 5, 2 * RATE // 5  # samples of silence after which nothing is sent, but for a reminder
QUIET = 2e-3  # no sample of a pause is louder
GREY = 128


def _encoder() -> AudioCodecContext:
    """Opus with a look-ahead of 2.5 ms; aiortc's own has 6.5, frames of 20 ms, and a second channel."""
    codec = AudioCodecContext.create("libopus", "w")
    codec.format, codec.layout, codec.sample_rate, codec.bit_rate, codec.time_base = "flt", "mono", RATE, BITS, CLOCK
    codec.options = {"application": "lowdelay", "frame_duration": str(PACKET * 1000 // RATE)}
    return codec


class Voice(MediaStreamTrack):
    """20 ms of Opus at a time, in real time; it moves the clock."""

    kind = "audio"

    def __init__(self, playout: Playout, *, pauses: bool = False) -> None:
        """pauses: little is sent of them, as Opus has it (DTX)."""
        super().__init__()
        self._playout, self._pauses = playout, pauses
        self._begin: float | None = None
        self._quiet = 0  # samples since something was heard
        self._opus = _encoder()

    async def recv(self) -> Packet:
        while True:
            packet = await self._next()
            pause = self._quiet - HANG - PACKET
            if pause < 0 or not self._pauses:
                return packet
            if pause % REMIND < 2 * PACKET:  # each twice: one may be lost
                empty = Packet(bytes(packet)[:1])
                empty.pts, empty.time_base = packet.pts, CLOCK
                return empty

    async def _next(self) -> Packet:
        if self.readyState != "live":
            raise MediaStreamError
        place = self._playout.taken
        if self._begin is None:
            self._begin = time.monotonic() - place / RATE
        await asyncio.sleep(self._begin + place / RATE - time.monotonic())
        sound = self._playout.take(PACKET)
        self._quiet = 0 if np.abs(sound).max() > QUIET else self._quiet + PACKET
        frame = AudioFrame.from_ndarray(sound[None], format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, place, CLOCK
        packet = self._opus.encode(frame)[0]  # each frame at once; its own pts counts the look-ahead too
        packet.pts = place
        return packet


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
