"""The user's sound over WebRTC: in order, at once, and without holes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from av import AudioCodecContext, AudioFrame

from client.web.rtc.ear import PATIENCE, AtOnce, Ear
from client.web.rtc.playout import RATE

pytestmark = pytest.mark.unit
N = RATE // 50


def hear(ear: Ear, packets: list[int], start: int = 0) -> list[list[float]]:
    """What comes out with each packet, which is as loud as its number; an echo of a packet is not."""
    out = [ear.feed((start + p * N) % (1 << 32), np.full(N, p + 1, np.float32)) for p in packets]
    return [[float(part[0]) - 1 if np.ptp(part) == 0 else -part.size / N for part in parts] for parts in out]


@pytest.mark.parametrize("start", [0, (1 << 32) - 3 * N])
@pytest.mark.parametrize(
    ("packets", "expected"),
    [
        ([0, 1, 2, 3], [[0], [1], [2], [3]]),
        ([0, 2, 1, 3], [[0], [], [1, 2], [3]]),
        ([0, 1, 1, 0, 2], [[0], [1], [], [], [2]]),
        ([0, 2, 3, 4], [[0], [], [-1, 2, 3], [4]]),
        ([0, 3, 4, 1], [[0], [-2, 3], [4], []]),
        ([0, 500, 501], [[0], [500], [501]]),
    ],
    ids=["in order", "reordered", "twice", "lost", "two lost", "a new clock"],
)
def test_packets_come_out_in_order(packets, expected, start):
    assert hear(Ear(), packets, start) == expected


def test_a_packet_is_heard_before_the_next_comes_and_none_ends_it():
    opus = AudioCodecContext.create("libopus", "w")
    opus.format, opus.layout, opus.sample_rate = "s16", "mono", RATE
    tone = (8000 * np.sin(np.arange(N) * 2 * np.pi * 300 / RATE)).astype("<i2")
    heard: list[np.ndarray] = []
    ear = AtOnce(heard.append)
    for place in range(10):
        frame = AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = RATE, place * N
        for data in (b"", b"\xff" * 7, *(bytes(packet) for packet in opus.encode(frame))):  # nothing, nonsense, sound
            assert ear.add(SimpleNamespace(_data=data, timestamp=place * N)) == (False, None)
        assert sum(part.size for part in heard) == (place + 1) * N
    assert 0.2 < np.abs(heard[-1]).max() < 0.3


def test_it_remembers_little():
    ear = Ear()
    for p in range(0, 400, 2):
        ear.feed(p * N, np.zeros(N, np.float32))
    assert sum(part.size for part in ear._early.values()) <= PATIENCE + N
