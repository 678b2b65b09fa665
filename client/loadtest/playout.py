"""What a listener with a small playout buffer would have heard and seen. Pure arithmetic over arrival times.

The buffer is of the fixed kind: the agent's clock stands `BUFFER_MS` behind the most punctual answer of the first
second, and it never waits. What arrives after its moment is lost, so one hiccup is not forgiven by a growing delay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..stream.units import FPS, FRAMES_PER_UNIT, UNIT_SECONDS
from .user import UnitLog

BUFFER_MS = 100.0
ANCHOR_UNITS = 6  # about a second
FRAME_SECONDS = 1 / FPS


@dataclass
class Playout:
    """Of one user. skew_ms: sound heard less picture shown, in media time, at every frame at which sound was heard."""

    units: int = 0
    underruns: int = 0  # units of which the beginning was missing when its moment came
    lost_ms: float = 0.0  # of sound
    frames: int = 0  # moments at which a new picture was due
    frozen: int = 0  # .. and an older one had to stay
    skew_ms: list[float] = field(default_factory=list)


def play(units: Sequence[UnitLog], skip: int = 0, buffer_ms: float = BUFFER_MS) -> Playout:
    """Plays the answers to `units` (one user's, in order, unanswered ones included); the first `skip` do not count."""
    out = Playout()
    early = [unit.received - unit.due for unit in units[:ANCHOR_UNITS] if unit.received is not None]
    if not early:
        return out
    delay = min(early) + buffer_ms / 1e3  # from a unit's due time to the moment its answer begins to be played
    shown = -1.0  # media time of the newest picture so far, in frames
    for unit in units:
        begin = unit.due + delay
        missing = UNIT_SECONDS if unit.received is None else min(max(unit.received - begin, 0.0), UNIT_SECONDS)
        counted = unit.index >= skip
        if counted:
            out.units += 1
            out.underruns += missing > 0
            out.lost_ms += missing * 1e3
        repeated = "repeat_frame" in unit.degradation
        for frame in range(FRAMES_PER_UNIT):
            media = unit.index * FRAMES_PER_UNIT + frame
            here = frame * FRAME_SECONDS >= missing
            if here and not repeated:
                shown = media
            if not counted:
                continue
            out.frames += 1
            out.frozen += shown != media
            if here and "silence" not in unit.degradation and shown >= 0:
                out.skew_ms.append((media - shown) * FRAME_SECONDS * 1e3)
    return out
