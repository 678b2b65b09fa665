"""What the users of a load test say and show: one recording, cut into units; each starts at a place of their own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..media.source import read_source
from ..stream.units import Float32, UInt8, UnitShape, UserUnit

DEMO = Path(__file__).parents[1] / "demo_media"
SPEECH, FACE = DEMO / "user_speech.flac", DEMO / "user_face.mp4"
MOST_SECONDS = 40.0  # of the recording that are kept in memory
GOLDEN = 0.6180339887498949  # its multiples, modulo 1, spread evenly however many there are


@dataclass(frozen=True, eq=False)
class Media:
    """pcm float32 [K, N] and frames uint8 [K, 4, H, W, 3]: K units, repeated for as long as somebody talks."""

    pcm: Float32
    frames: UInt8
    files: dict[str, str]

    @classmethod
    def read(cls, shape: UnitShape, audio: Path = SPEECH, video: Path = FACE) -> Media:
        """Decodes everything now, so that nothing is decoded while units are due. Raises MediaError."""
        source = read_source(shape, audio=audio, video=video, loop=True, tail=0.0, seconds=MOST_SECONDS)
        frames = np.stack([unit.frames for unit in source.units()])
        return cls(source.pcm.reshape(source.count, shape.samples), frames, source.files)

    def __len__(self) -> int:
        return len(self.pcm)

    def unit(self, user: int, index: int, *, end: bool = False) -> UserUnit:
        """Unit `index` of `user`: users are at different places of the recording, as people are."""
        place = (int(user * GOLDEN % 1.0 * len(self)) + index) % len(self)
        return UserUnit(index, self.pcm[place], self.frames[place], end=end)
