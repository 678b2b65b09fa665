"""When a voice is heard: energy per frame, for pictures and labels only. The model gets no voice activity detector."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ..stream.units import FRAMES_PER_UNIT, Float32

FLOOR_DB = -80.0
QUIET_DB = -50.0  # below this nothing counts as speech, however quiet the rest is
BELOW_PEAK_DB = 30.0  # speech is within this of the loudest unit of the recording

Decibel = NDArray[np.float64]


def level_db(pcm: Float32, frame: int) -> Decibel:
    """RMS of consecutive frames of `frame` samples in dB of full scale, [ceil(n / frame)], at least FLOOR_DB."""
    count = -(-pcm.size // frame)
    padded = np.zeros(count * frame, dtype=np.float64)
    padded[: pcm.size] = pcm
    power = (padded.reshape(count, frame) ** 2).mean(axis=1)
    return 10.0 * np.log10(np.maximum(power, 10.0 ** (FLOOR_DB / 10.0)))


def unit_levels(units: Iterable[Float32], samples: int) -> Decibel:
    """[units, 4]: of each 40 ms of a voice that comes unit by unit."""
    levels = [level_db(pcm, samples // FRAMES_PER_UNIT)[:FRAMES_PER_UNIT] for pcm in units]
    return np.stack(levels) if levels else np.zeros((0, FRAMES_PER_UNIT))


def active(levels: Decibel) -> NDArray[np.bool_]:
    """Whether there is speech in each unit; levels: [units, 4]."""
    whole = 10.0 * np.log10((10.0 ** (levels / 10.0)).mean(axis=1))
    return whole > max(QUIET_DB, whole.max(initial=FLOOR_DB) - BELOW_PEAK_DB)
