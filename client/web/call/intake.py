"""What the user has said, shown and typed and the model has not heard yet: bounded, cut into units."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from client.media.loudness import QUIET_DB, level_db
from client.stream import UnitShape, UserUnit
from client.stream.units import FRAMES_PER_UNIT, Float32, UInt8

GREY = 128  # the model's picture of a user without a camera
MAX_FRAMES = 16  # waiting pictures; the oldest goes
MAX_TEXT_BYTES = 1024  # typed and not yet handed over: no more tokens than a server lets a session's text wait
TRIM_UNITS = 4  # a live backlog that did not empty for this long is delay, not jitter
BURST_SECONDS = 1.0  # ahead of real time: that is no microphone
STALL_SECONDS = 2.0  # for which a microphone's network may stand still; it makes up for them at once
PATIENCE_UNITS = 12  # for which a pause is waited for, which may be left out unheard
PAUSE_DB = 20.0  # quieter than the loudest that waits


@dataclass(frozen=True)
class Stamp:
    """When the last sample of a piece of audio was taken (by the client's clock, in its unit) and when it came here."""

    captured: float
    arrived: float


@dataclass(frozen=True, eq=False)
class Taken:
    """One unit and how it came about. stamp: of the last sample in it that had one."""

    unit: UserUnit
    stamp: Stamp | None
    padded: int  # samples of silence at the end, because nothing had arrived
    backlog: float  # units of audio that still wait


class Intake:
    """Audio, pictures and text of one user.

    live: a microphone: what is more than `limit_seconds` old is worth nothing, the oldest goes. Otherwise audio may
    come faster than real time (a file in one burst): that is kept whole, and what does not fit is refused. What comes
    in real time is a microphone's here too, and catches up with a server that was slow by its pauses.
    """

    def __init__(self, shape: UnitShape, *, live: bool, limit_seconds: float, text_bytes: int | None = None) -> None:
        self.shape = shape
        self.live = live
        self.limit = round(limit_seconds * shape.sample_rate)
        self.text_bytes = min(text_bytes or MAX_TEXT_BYTES, MAX_TEXT_BYTES)  # may wait: what the checkpoint reads
        self.dropped = 0  # samples of a live user that came too late to be heard
        self.changed = asyncio.Event()  # set by every call that adds something
        self._pcm: deque[tuple[Float32, Stamp | None]] = deque()
        self._waiting = 0  # samples in _pcm
        self._frames: deque[UInt8] = deque(maxlen=MAX_FRAMES)
        self._last = np.full((shape.height, shape.width, 3), GREY, dtype=np.uint8)
        self._text: list[str] = []
        self._lasts = 0.0  # until when, by time.monotonic(), what came lasts in real time
        self._burst = False  # it came too early for a microphone
        self._late = 0  # units for which the backlog has been delay
        self._least: deque[int] = deque(maxlen=TRIM_UNITS)  # samples left over after each of the last units

    @property
    def backlog(self) -> float:
        """Units of audio that wait."""
        return self._waiting / self.shape.samples

    def add_pcm(self, pcm: Float32, stamp: Stamp | None = None) -> None:
        """float32 [n]. Raises ValueError when it does not fit (never for a live user)."""
        self.check_room(pcm.size)
        if pcm.size:
            self._pcm.append((pcm, stamp))
            self._waiting += pcm.size
            now = time.monotonic()
            self._lasts = max(self._lasts, now - STALL_SECONDS) + pcm.size / self.shape.sample_rate
            self._burst = self._burst or self._lasts > now + BURST_SECONDS
        if self._waiting > self.limit:
            self._drop(self._waiting - self.limit)
        self.changed.set()

    def check_room(self, samples: float) -> None:
        """Raises ValueError when so much more audio does not fit (never for a live user)."""
        if not self.live and self._waiting + samples > self.limit:
            raise ValueError(
                f"audio: expected at most {self.limit / self.shape.sample_rate:g} s ahead of real time, "
                f"got {(self._waiting + samples) / self.shape.sample_rate:.1f} s"
            )

    def add_frames(self, frames: UInt8) -> None:
        """uint8 [n, H, W, 3], oldest first."""
        self._frames.extend(frames)
        self.changed.set()

    def add_text(self, text: str) -> None:
        """Raises ValueError when too much of it waits."""
        waiting = sum(len(part.encode()) for part in self._text)
        if (size := waiting + len(text.encode(errors="replace"))) > self.text_bytes:
            raise ValueError(f"text: expected at most {self.text_bytes} bytes waiting to be read, got {size}")
        self._text.append(text.encode(errors="replace").decode())
        self.changed.set()

    def clear_pcm(self) -> None:
        """Forgets the audio that has not been handed over."""
        self._pcm.clear()
        self._waiting, self._burst = 0, False

    def clear_text(self) -> None:
        self._text.clear()

    def clear_frames(self) -> None:
        """The camera is off: grey from here on, not the last picture for ever."""
        self._frames.clear()
        self._last = np.full_like(self._last, GREY)

    def take(self, index: int, *, end: bool = False, interrupt: bool = False) -> Taken:
        """Unit `index`: what has arrived, silence after it, and the newest pictures (the last one when none came)."""
        pcm = np.zeros(self.shape.samples, dtype=np.float32)
        filled, newest = 0, None
        while self._pcm and filled < pcm.size:
            part, stamp = self._pcm.popleft()
            n = min(part.size, pcm.size - filled)
            pcm[filled : filled + n] = part[:n]
            filled += n
            if n < part.size:
                self._pcm.appendleft((part[n:], stamp))
            elif stamp is not None:
                newest = stamp
        self._waiting -= filled
        self._burst = self._burst and self.backlog >= 1.0
        if self.live or not self._burst:
            self._trim()
        text = " ".join(self._text)
        self._text.clear()
        unit = UserUnit(index, pcm, self._pictures(), text, end, interrupt)
        return Taken(unit, newest, pcm.size - filled, self.backlog)

    def _pictures(self) -> UInt8:
        if not self._frames:
            return np.repeat(self._last[None], FRAMES_PER_UNIT, axis=0)
        waiting = list(self._frames)
        self._frames.clear()
        self._last = waiting[-1]
        picks = np.linspace(0, len(waiting) - 1, FRAMES_PER_UNIT).round().astype(int)
        return np.stack([waiting[i] for i in picks])

    def _trim(self) -> None:
        """Drops what never got shorter for a while: after a stall a live user would stay late for good.

        Pauses go first; a word loses its beginning only where no pause came.
        """
        self._least.append(self._waiting)
        if len(self._least) < TRIM_UNITS or (least := min(self._least)) <= self.shape.samples // 2:
            self._late = 0
            return
        self._late += 1
        dropped = self._drop_pauses(least)
        if self.live and not dropped and self._late > PATIENCE_UNITS:
            self._drop(least)
            dropped = True
        if dropped:
            self._least.clear()
            self._late = 0

    def _drop_pauses(self, samples: int) -> bool:
        """Up to so many samples of what waits and is much quieter than the rest; whether there were any."""
        levels = [float(level_db(part, part.size)[0]) for part, _ in self._pcm]
        limit, left = max(QUIET_DB, max(levels) - PAUSE_DB), samples
        for level in levels:
            part, stamp = self._pcm.popleft()
            if level <= limit and part.size <= left:
                left -= part.size
            else:
                self._pcm.append((part, stamp))
        self.dropped += samples - left
        self._waiting -= samples - left
        return left < samples

    def _drop(self, samples: int) -> None:
        self.dropped += samples
        self._waiting -= samples
        while samples:
            part, stamp = self._pcm.popleft()
            if part.size > samples:
                self._pcm.appendleft((part[samples:], stamp))
            samples -= min(samples, part.size)
