"""The user's sound as it comes: packets are decoded at once and put in order by their time, instead of being held back.

What waits for its unit waits anyway; a buffer in front of that would only be delay.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
from aiortc.rtcrtpreceiver import RTCRtpReceiver
from av import AudioCodecContext, Packet
from av.error import FFmpegError

from client.stream.units import Float32

from ..media import from_pcm16
from .playout import RATE

PATIENCE = round(0.04 * RATE)  # samples of later sound for which a missing packet is waited for
JUMP = RATE  # samples: a clock that is set anew, not a loss
_WRAP = 1 << 32
_BUFFER = "_RTCRtpReceiver__jitter_buffer"


class AtOnce:
    """aiortc's jitter buffer for sound holds packets back for 80 ms, and from the first loss on for 320; its decoder is
    a thread and two queues away. This takes the place of both."""

    def __init__(self, hear: Callable[[Float32], None]) -> None:
        self._hear, self._ear = hear, Ear()
        self._opus = AudioCodecContext.create("libopus", "r")
        self._opus.format, self._opus.layout, self._opus.sample_rate = "s16", "mono", RATE

    def add(self, packet: Any) -> tuple[bool, None]:
        """An RTP packet. Nothing of it is left for aiortc."""
        if packet._data:  # an empty one would end the decoder
            with contextlib.suppress(FFmpegError):
                for frame in self._opus.decode(Packet(packet._data)):
                    for part in self._ear.feed(packet.timestamp, from_pcm16(frame.to_ndarray().tobytes())):
                        self._hear(part)
        return False, None


def hand_on_at_once(receiver: RTCRtpReceiver, hear: Callable[[Float32], None]) -> None:
    """hear: gets what the user says, float32 [n] at RATE. aiortc has no setting for it."""
    if not hasattr(receiver, _BUFFER):
        raise AttributeError(f"aiortc: expected {_BUFFER}, its version is another one")
    setattr(receiver, _BUFFER, AtOnce(hear))


class Ear:
    """Pure policy. A packet that is lost leaves an echo of the sound before it, dying away."""

    def __init__(self) -> None:
        self._next: int | None = None  # sample that is heard next
        self._early: dict[int, Float32] = {}  # by distance from the first sample ever heard
        self._last = np.zeros(1, np.float32)

    def feed(self, pts: int, sound: Float32) -> list[Float32]:
        """float32 [n] that begins at sample `pts` (its lower 32 bits count) -> what follows what was heard."""
        if self._next is None:
            self._next = pts
        ahead = (pts - self._next + _WRAP // 2) % _WRAP - _WRAP // 2
        if abs(ahead) > JUMP:
            self._early.clear()
            self._next, ahead = pts, 0
        if ahead < 0:
            return []
        self._early[self._next + ahead] = sound
        out: list[Float32] = []
        while self._early:
            if (part := self._early.pop(self._next, None)) is None:
                if max(self._early) - self._next < PATIENCE:
                    break
                gap = min(self._early) - self._next
                part = np.resize(self._last, gap) * np.linspace(1, 0, gap, dtype=np.float32)
            out.append(part)
            self._next += part.size
            self._last = part
            self._early = {at: early for at, early in self._early.items() if at >= self._next}
        return out
