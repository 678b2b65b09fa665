"""PCM between the wire and the model: 16-bit little-endian bytes <-> float32, and from one sample rate to another."""

from __future__ import annotations

import av
import numpy as np
from av.audio.frame import AudioFrame

from client.stream.units import Float32

LOWEST_RATE, HIGHEST_RATE = 8_000, 48_000


def from_pcm16(data: bytes) -> Float32:
    """16-bit little-endian mono -> float32 [n] in -1..1. Raises ValueError for half a sample."""
    if len(data) % 2:
        raise ValueError(f"audio: expected an even number of bytes (16-bit samples), got {len(data)}")
    return np.frombuffer(data, dtype="<i2").astype(np.float32) / 32768.0


def to_pcm16(pcm: Float32) -> bytes:
    """float32 [n] -> 16-bit little-endian mono; louder than full scale is clipped, not wrapped."""
    return (np.clip(np.nan_to_num(pcm), -1.0, 1.0) * 32767.0).astype("<i2").tobytes()


class Resampler:
    """A stream of mono samples from one rate to another; keeps the filter's state between calls."""

    def __init__(self, source: int, target: int) -> None:
        for name, rate in (("source", source), ("target", target)):
            if not LOWEST_RATE <= rate <= HIGHEST_RATE:
                raise ValueError(f"{name} rate: expected {LOWEST_RATE} to {HIGHEST_RATE} Hz, got {rate}")
        self.source, self.target = source, target
        self._filter = None if source == target else av.AudioResampler(format="flt", layout="mono", rate=target)

    def feed(self, pcm: Float32) -> Float32:
        """float32 [n] at the source rate -> float32 [about n * target / source] at the target rate."""
        if self._filter is None or not pcm.size:
            return pcm
        frame = AudioFrame.from_ndarray(np.ascontiguousarray(pcm[None]), format="flt", layout="mono")
        frame.sample_rate = self.source
        parts = [part.to_ndarray().reshape(-1) for part in self._filter.resample(frame)]
        return np.concatenate(parts).astype(np.float32, copy=False) if parts else np.zeros(0, np.float32)
