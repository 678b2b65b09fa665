"""Files as people have them: which of their streams is read, what time it is in them, and what of them is lost.

Headers are hints. Time is taken from the stamps of what is decoded, by one clock for sound and pictures; whatever
cannot be decoded is left out and counted, as players do it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition

from ..stream.errors import MediaError

JUMP = Fraction(10)  # seconds; time that leaps further, or back, was joined from two recordings
BACK = Fraction(1, 10)
MOST_ERRORS = 100  # of a container that is read no further


def opened(path: Path) -> InputContainer:
    if not path.is_file():
        raise MediaError(f"{path}: no such file")
    try:
        return av.open(f"file:{path}")  # without it `12:30.wav` is a protocol
    except (FFmpegError, ValueError) as error:
        raise MediaError(f"{path}: not a media file that can be decoded ({reason(error)})") from None


def stream_of(path: Path, container: InputContainer, kind: str) -> Any:
    """The best stream of `kind` ("audio", "video") that can be decoded; a cover is a picture only where there is no
    other. Raises MediaError if there is none."""
    found = [s for s in container.streams if s.type == kind and getattr(s, "codec_context", None) is not None]
    moving = [s for s in found if not s.disposition & Disposition.attached_pic]
    best = container.streams.best(kind)  # pyright: ignore[reportArgumentType]
    for stream in (best, *moving, *found):
        if stream is not None and stream in (moving or found):
            return stream
    wanted = "an audio stream" if kind == "audio" else "a video or an image"
    there = ", ".join(stream.type for stream in container.streams) or "no stream at all"
    raise MediaError(f"{path}: expected {wanted}, found {there}")


def has(path: Path, kind: str) -> bool:
    """Whether a file has a stream of `kind` that can be decoded."""
    with opened(path) as container, contextlib.suppress(MediaError):
        return stream_of(path, container, kind) is not None
    return False


class Reading:
    """One pass over one stream.

    errors: how many pieces could not be decoded, and why the last of them could not.
    """

    def __init__(self, container: InputContainer, stream: Any) -> None:
        self.errors, self.why = 0, ""
        self._container, self._stream = container, stream

    def frames(self) -> Iterator[Any]:
        for packet in self._packets():
            try:
                yield from packet.decode()
            except FFmpegError as error:
                self._count(error)
        with contextlib.suppress(FFmpegError):  # what a stream that breaks off has left in its decoder
            yield from self._stream.decode(None)

    def length(self) -> Fraction:
        """Seconds, 0 for a single picture; nothing is decoded for it."""
        clock, count = Clock(self._container), 0
        for packet in self._packets():
            if packet.size and packet.dts is not None:
                count += 1
                clock.place(packet.dts, packet.time_base, packet.duration, self._stream)
        return clock.end if count > 1 else Fraction(0)

    def _packets(self) -> Iterator[Any]:
        for _ in range(MOST_ERRORS):  # after most errors a file goes on
            try:
                yield from self._container.demux(self._stream)
                return
            except FFmpegError as error:
                self._count(error)

    def _count(self, error: FFmpegError) -> None:
        self.errors += 1
        self.why = reason(error)


class Clock:
    """Seconds since the beginning of a file, for what is decoded of one of its streams.

    What two joined recordings say of the time between them is taken out: nobody waited for it.
    """

    def __init__(self, container: InputContainer) -> None:
        starts = [s.start_time * s.time_base for s in container.streams
                  if s.type in ("audio", "video") and s.start_time is not None and s.time_base is not None]  # fmt: skip
        self._shift = -min(starts, default=Fraction(0))
        self.end: Fraction = Fraction(0)  # of what was placed last
        self._begun = False

    def place(self, stamp: int | None, base: Fraction | None, duration: int | None, stream: Any) -> Fraction:
        """When something begins. Without a stamp it follows what was before."""
        at = self.end if stamp is None or base is None else stamp * Fraction(base) + self._shift
        if not -BACK <= at - self.end <= JUMP and (self._begun or at < 0):
            self._shift += self.end - at
            at = self.end
        at, self._begun = max(at, Fraction(0)), True
        self.end = max(self.end, at + self._lasts(duration, base, stream))
        return at

    @staticmethod
    def _lasts(duration: int | None, base: Fraction | None, stream: Any) -> Fraction:
        if duration and base and 0 < duration * base <= JUMP:
            return duration * Fraction(base)
        rate = getattr(stream, "average_rate", None)
        return 1 / Fraction(rate) if rate and 1 <= rate <= 240 else Fraction(1, 25)


def reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
