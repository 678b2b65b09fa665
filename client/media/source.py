"""The user of a conversation that is read from files: sound, pictures and typed text, cut into units."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..stream.errors import MediaError
from ..stream.units import FRAMES_PER_UNIT, UNIT_SECONDS, Float32, UInt8, UnitShape, UserUnit
from .container import has
from .pictures import VideoFile
from .sound import read_audio, scratch

GREY = 128  # the model's picture of a user without a camera


@dataclass(frozen=True)
class TypedText:
    """Text that the user types, handed over with the unit in which `seconds` falls."""

    seconds: float
    text: str


@dataclass(frozen=True)
class Caption:
    """What the user does during [start, stop) seconds, in words, for pictures of the conversation."""

    start: float
    stop: float
    text: str


@dataclass(frozen=True, eq=False)
class UserSource:
    """Everything that the user will say and show. `units` may be walked more than once."""

    shape: UnitShape
    count: int  # units in all
    pcm: Float32  # [count * samples], on disk
    video: VideoFile | None
    typed: dict[int, str] = field(default_factory=dict)  # unit -> text
    files: dict[str, str] = field(default_factory=dict)  # what it was read from, for the report
    captions: tuple[Caption, ...] = ()  # instead of what is typed
    notes: tuple[str, ...] = ()  # what was not as it should be in the files

    def units(self) -> Iterator[UserUnit]:
        """Units 0 .. count-1, the last with `end`; pictures are decoded on the way."""
        pictures = self.video.frames() if self.video else None
        blank = np.full(self.shape.frames, GREY, dtype=np.uint8)
        for index in range(self.count):
            frames = blank
            if pictures is not None:
                frames = np.stack([next(pictures) for _ in range(FRAMES_PER_UNIT)])
            yield UserUnit(
                index=index,
                pcm=self.pcm[index * self.shape.samples : (index + 1) * self.shape.samples],
                frames=frames,
                text=self.typed.get(index, ""),
                end=index == self.count - 1,
            )

    def pictures(self, height: int, width: int) -> Iterator[UInt8]:
        """The user's pictures at another size (for people, not for the model), uint8 [height, width, 3], for ever."""
        if self.video is not None:
            yield from VideoFile(self.video.path, height, width, loop=self.video.loop).frames()
        while True:
            yield np.full((height, width, 3), GREY, dtype=np.uint8)


def read_source(
    shape: UnitShape,
    *,
    audio: Path | None = None,
    video: Path | None = None,
    typed: Sequence[TypedText] = (),
    loop: bool = False,
    tail: float = 2.0,
    seconds: float | None = None,
) -> UserSource:
    """Reads the user's files.

    audio: None takes the sound track of `video`, or silence.  video: None shows grey.  tail: seconds of silence at the
    end, in which the agent can finish.  seconds: cut-off of the whole conversation.
    Raises MediaError for an unusable file and when there is nothing to say or show.
    """
    if audio is None and video is None and not typed:
        raise MediaError("nothing to say: give an audio file, a video, or text")
    if not tail >= 0 or (seconds is not None and not seconds > 0):
        raise MediaError(f"tail and seconds: expected tail >= 0 and seconds > 0, got {tail} and {seconds}")
    notes: list[str] = []
    pictures = VideoFile(video, shape.height, shape.width, loop=loop) if video else None
    track = audio if audio is not None else video if video is not None and has(video, "audio") else None
    sound = np.zeros(0, np.float32)
    try:
        sound = read_audio(track, shape.sample_rate, seconds, notes) if track else sound
    except MediaError as error:
        if audio is not None:
            raise
        track = None  # a film whose sound track is empty has pictures all the same
        notes.append(f"{error}: silence in its place")
    length = max(
        sound.size / shape.sample_rate,
        pictures.seconds if pictures and not (loop and sound.size) else 0.0,
        max((t.seconds for t in typed), default=0.0),
    )
    length = min(length + tail, seconds or math.inf)
    count = max(1, math.ceil(length / UNIT_SECONDS - 1e-6))
    pcm = scratch(count * shape.samples)
    pcm[: sound.size] = sound[: pcm.size]
    notes += pictures.notes if pictures else []
    files = {"audio": str(track.name) if track else "silence", "video": str(video.name) if video else "grey"}
    return UserSource(shape, count, pcm, pictures, _by_unit(typed, count), files, notes=tuple(notes))


def _by_unit(typed: Sequence[TypedText], count: int) -> dict[int, str]:
    lines: dict[int, list[str]] = defaultdict(list)
    for item in typed:
        if not 0 <= item.seconds < math.inf:
            raise MediaError(f"text: expected a time >= 0 s, got {item.seconds}")
        lines[min(int(item.seconds / UNIT_SECONDS), count - 1)].append(item.text)
    return {unit: " ".join(parts) for unit, parts in lines.items()}
