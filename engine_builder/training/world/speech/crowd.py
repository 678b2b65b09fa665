"""A crowd: many people of whom each says a word or two, as in Speech Commands.

Warden 2018, "Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition", arXiv:1804.03209; CC BY 4.0, no
part of this project. A folder holds `WORD/SPEAKER_nohash_INDEX.wav`, or, as the collection's own test set has the words
that are no commands, `_unknown_/WORD_SPEAKER_nohash_INDEX.wav`. Only the ten digits are read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..words import DIGITS
from .synths import read_wave
from .voices import SAMPLE_RATE, Pcm, from_pcm16, normalise

ARCHIVE = "http://download.tensorflow.org/data/speech_commands_test_set_v0.02.tar.gz"
DEFAULT = Path("build/data/speech_commands")
_NAME = re.compile(r"(?P<speaker>[0-9a-f]{8})_nohash_\d+")
_HELD_OUT = 1 / 4  # of the speakers: judges, never trained with
_FRAME, _EDGE = 160, 1  # 10 ms; frames kept before and after what is loud
_LOUD, _ABOVE_FLOOR = 0.03, 2.0  # of the loudest frame; times the noise between words
_MOST = 600  # recordings of a digit: the whole collection has several times as many, and would fill the memory
_LONGEST = 0.9  # s; what fills the whole second has no beginning or no end


class RecordingsMissing(RuntimeError):
    """No recordings where they were looked for; the message says where they come from."""


def held_out(speaker: str) -> bool:
    """Whether that speaker judges; the others train. The same for every copy and part of the collection."""
    return int(hashlib.sha256(speaker.encode()).hexdigest()[:8], 16) < _HELD_OUT * 2**32


def crowd(folder: Path, judges: bool) -> list[list[Pcm]]:
    """Recordings of each digit at 16 kHz, peak 0.5, trimmed. RecordingsMissing if a digit has none."""
    clips: list[list[Pcm]] = [[] for _ in DIGITS["en"]]
    for path, word, speaker in _found(folder):
        said = clips[DIGITS["en"].index(word)]
        if held_out(speaker) == judges and len(said) < _MOST:
            clip = _trimmed(from_pcm16(*read_wave(path)))
            if clip.size < _LONGEST * SAMPLE_RATE:
                said.append(normalise(clip))
    if not all(clips):
        raise RecordingsMissing(
            f"{folder}: expected recordings zero/SPEAKER_nohash_INDEX.wav and so on of every digit, as Speech Commands "
            f"has them; unpack {ARCHIVE} there, or name another folder (CROWD=DIR)"
        )
    return clips


def _found(folder: Path) -> Iterator[tuple[Path, str, str]]:
    """Path, digit's word, speaker."""
    for word in DIGITS["en"]:
        for path in sorted([*folder.glob(f"{word}/*.wav"), *folder.glob(f"_unknown_/{word}_*.wav")]):
            name = _NAME.fullmatch(path.stem.removeprefix(f"{word}_"))
            if name is not None:
                yield path, word, name["speaker"]


def _trimmed(pcm: Pcm) -> Pcm:
    """The word without what is before and after it, in a room that is not silent."""
    frames = pcm[: pcm.size // _FRAME * _FRAME].reshape(-1, _FRAME)
    level = np.convolve(np.sqrt((frames**2).mean(axis=1)), np.full(3, 1 / 3), "same")
    loud = np.flatnonzero(level > max(_LOUD * float(level.max()), _ABOVE_FLOOR * float(np.percentile(level, 15))))
    if not loud.size:
        return pcm
    return pcm[max(0, loud[0] - _EDGE) * _FRAME : (loud[-1] + 1 + _EDGE) * _FRAME]
