"""When a voice is heard: energy per frame, for pictures and labels only. The model gets no voice activity detector."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from client.stream.units import Float32

FLOOR_DB = -80.0
QUIET_DB = -50.0  # below this nothing counts as speech, however quiet the rest is
BELOW_PEAK_DB = 30.0  # speech is within this of the loudest frame of the recording


def level_db(pcm: Float32, frame: int) -> NDArray[np.float64]:
    """RMS of consecutive frames of `frame` samples in dB of full scale, [ceil(n / frame)], at least FLOOR_DB."""
    count = -(-pcm.size // frame)
    padded = np.zeros(count * frame, dtype=np.float64)
    padded[: pcm.size] = pcm
    power = (padded.reshape(count, frame) ** 2).mean(axis=1)
    return 10.0 * np.log10(np.maximum(power, 10.0 ** (FLOOR_DB / 10.0)))


def active(pcm: Float32, frame: int) -> NDArray[np.bool_]:
    """Whether there is speech in each frame of `frame` samples."""
    levels = level_db(pcm, frame)
    if not levels.size:
        return np.zeros(0, dtype=np.bool_)
    return levels > max(QUIET_DB, float(levels.max()) - BELOW_PEAK_DB)
