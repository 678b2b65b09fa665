"""Whether the user can be heard in a unit: a level meter for labels and flushing. The model gets no such signal."""

from __future__ import annotations

from collections import deque

from client.media.loudness import QUIET_DB, level_db
from client.stream.units import Float32

ABOVE_NOISE_DB = 12.0
BARGE_IN_UNITS = 3  # an agent that falls silent this soon after the user was heard was interrupted
NOISE_UNITS = 32  # about five seconds, within which anybody breathes
START_DB = -60.0  # a quiet room, until the real one is known


class Hearing:
    """Compares each unit with the quietest of the last seconds."""

    def __init__(self) -> None:
        self.active = False  # in the newest unit
        self.quiet_units = 0  # units since the user was last heard
        self._levels: deque[float] = deque([START_DB], maxlen=NOISE_UNITS)

    def feed(self, pcm: Float32) -> bool:
        """One unit, float32 [n]; whether the user is heard in it."""
        level = float(level_db(pcm, pcm.size)[0])
        self._levels.append(level)
        self.active = level > max(QUIET_DB, min(self._levels) + ABOVE_NOISE_DB)
        self.quiet_units = 0 if self.active else self.quiet_units + 1
        return self.active
