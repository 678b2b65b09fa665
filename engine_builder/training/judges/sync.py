"""Lip sync: mouth opening seen in frames against the envelope heard in the audio."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..world.speech.voices import SAMPLE_RATE, Pcm

_FRAME = SAMPLE_RATE // 25
_REACH_MS = 240
_STEP_MS = 5
_MOUTH_ROWS, _MOUTH_COLUMNS = slice(34, 56), slice(20, 44)
_DARK = 95.0  # mean grey level below which a pixel of the mouth region is the open mouth


def mouth_opening(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Dark pixels in the mouth region of each frame: frames uint8 [F, 64, 64, 3] -> [F]."""
    grey = frames[:, _MOUTH_ROWS, _MOUTH_COLUMNS].astype(np.float64).mean(axis=3)
    return np.clip((_DARK - grey) / 20.0, 0.0, 1.0).sum(axis=(1, 2))


def sync(frames: NDArray[np.uint8], pcm: Pcm) -> tuple[float, float]:
    """Best lag of the voice behind the mouth in ms (positive: the voice is late) and the correlation there.

    frames [F, 64, 64, 3]; pcm [F * 640]. The lag is searched in 5 ms steps; 0, 0 if mouth or voice never move.
    """
    mouth = np.sqrt(mouth_opening(frames))
    squares = np.concatenate([[0.0], np.cumsum(pcm.astype(np.float64) ** 2)])
    best = (0.0, 0.0)
    for lag in range(-_REACH_MS, _REACH_MS + 1, _STEP_MS):
        start = np.arange(len(mouth)) * _FRAME + lag * SAMPLE_RATE // 1000
        inside = (start >= 0) & (start + _FRAME <= pcm.size)
        energy = squares[start[inside] + _FRAME] - squares[start[inside]]
        envelope = np.sqrt(np.sqrt(np.maximum(energy / _FRAME, 0.0)))
        seen = mouth[inside]
        if envelope.std() < 1e-6 or seen.std() < 1e-6:
            continue
        value = float(np.corrcoef(envelope, seen)[0, 1])
        if value > best[1]:
            best = (float(lag), value)
    return best
