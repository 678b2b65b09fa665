"""What goes out next, sound and picture by one clock: the samples of the sound track that have been taken."""

from __future__ import annotations

from collections import deque

import numpy as np

from client.media.loudness import QUIET_DB, level_db
from client.stream.units import FPS, Float32, UInt8

from ..call.fence import Fence

RATE = 48_000  # of Opus
LEAD = round(0.01 * RATE)  # after silence: units come every 160 ms, and not to the millisecond
MORE, MOST = round(0.02 * RATE), round(0.12 * RATE)  # lead at most after a unit that came too late, and after all
CALM = 20 * RATE  # without one, after which the lead shrinks again
LATE = round(0.4 * RATE)  # after so long it was a pause
WATCH = 6  # units; what was never needed of the lead for so long is delay
MAX_WAITING = 2 * RATE
MAX_FRAMES = 2 * FPS
FRAME = RATE // FPS


class Playout:
    """Pure policy. What the fence does not let through any more is dropped when its turn comes."""

    def __init__(self, fence: Fence) -> None:
        self.taken = 0  # samples: the clock
        self.lead = LEAD
        self._fence = fence
        self._sound: deque[tuple[int | None, Float32]] = deque()
        self._waiting = 0
        self._dry: int | None = None  # since when nothing waits, where nobody wanted that
        self._loud = False  # the unit before: a gap in silence is none
        self._trouble = 0  # when the lead was last changed
        self._least: deque[int] = deque(maxlen=WATCH)  # samples that waited when the last units came
        self._frames: deque[tuple[int, UInt8]] = deque(maxlen=MAX_FRAMES)
        self._shown: UInt8 | None = None

    def say(self, sound: Float32, epoch: int | None) -> None:
        """float32 [n] at RATE. Too much of it: the oldest goes."""
        if not self._waiting:
            if self._loud and self._dry is not None and (gap := self.taken - self._dry) < LATE:
                self.lead, self._trouble = min(MOST, self.lead + min(MORE, gap)), self.taken
            self._add(np.zeros(self.lead, np.float32), epoch)
            self._least.clear()
        else:
            sound = self._shortened(sound)
        if self.lead > LEAD and self.taken - self._trouble > CALM:
            self.lead, self._trouble = max(LEAD, self.lead - MORE), self.taken
        self._add(sound, epoch)
        self._loud = _loud(sound)
        while self._waiting > MAX_WAITING:
            self._waiting -= self._sound.popleft()[1].size

    def _shortened(self, sound: Float32) -> Float32:
        """Pauses of the agent take up the delay that late units left behind."""
        self._least.append(self._waiting)
        spare = min(self._least) - self.lead
        if len(self._least) < WATCH or spare <= 0 or _loud(sound):
            return sound
        cut = min(spare, sound.size - 1)
        self._least = deque((waited - cut for waited in self._least), maxlen=WATCH)
        return sound[cut:]

    def _add(self, sound: Float32, epoch: int | None) -> None:
        self._sound.append((epoch, sound))
        self._waiting += sound.size

    def show(self, frames: UInt8) -> None:
        """uint8 [n, H, W, 3], along with the sound that is said next."""
        start = self.taken + (self._waiting or self.lead)
        while self._frames and self._frames[-1][0] >= start:
            self._frames.pop()  # they belonged to sound that was dropped
        self._frames.extend((start + i * FRAME, frame) for i, frame in enumerate(frames))

    def take(self, samples: int) -> Float32:
        """The next samples, silence where there is nothing to say."""
        out = np.zeros(samples, np.float32)
        filled, dropped = 0, False
        while self._sound and filled < samples:
            epoch, part = self._sound.popleft()
            self._waiting -= part.size
            if not self._fence.passes(epoch):
                dropped = True
                continue
            n = min(part.size, samples - filled)
            out[filled : filled + n] = part[:n]
            filled += n
            if n < part.size:
                self._sound.appendleft((epoch, part[n:]))
                self._waiting += part.size - n
        self.taken += samples
        if dropped or self._waiting:
            self._dry = None
        elif filled:
            self._dry = self.taken - samples + filled
        return out

    def picture(self) -> UInt8 | None:
        """The newest picture whose time has come; the last one again where there is no newer."""
        while self._frames and self._frames[0][0] <= self.taken:
            self._shown = self._frames.popleft()[1]
        return self._shown


def _loud(sound: Float32) -> bool:
    return sound.size > 0 and float(level_db(sound, sound.size)[0]) > QUIET_DB
