"""Real people: recordings of English digits, from a folder that the user has fetched.

The folder holds `recordings/{digit}_{speaker}_{index}.wav`, mono 16-bit, as the Free Spoken Digit Dataset lays them out
(github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0). It is no part of this project.
"""

from __future__ import annotations

from pathlib import Path

from .crowd import RecordingsMissing, crowd
from .synths import read_wave
from .voices import Pcm, from_pcm16, normalise, trim

HOME = "https://github.com/Jakobovski/free-spoken-digit-dataset"
DEFAULT = Path("build/data/fsdd")
CROWD = "crowd"  # a speaker who is many: every recording is another person's
_DIGITS = 10


class People:
    """Recordings at 16 kHz, silence trimmed, peak 0.5, by speaker and digit."""

    def __init__(self, clips: dict[str, list[list[Pcm]]]) -> None:
        self._clips = clips
        self.speakers = tuple(clips)
        self.crowd = self.speakers.index(CROWD) if CROWD in clips else None  # number of that speaker

    @classmethod
    def strangers(cls, folder: Path) -> People:
        """The judges of a crowd, in whose voices nothing was trained. RecordingsMissing if there is none."""
        return cls({CROWD: crowd(folder, judges=True)})

    def and_crowd(self, folder: Path) -> People:
        """These people and a crowd's voices for training, as one more speaker."""
        return People({**self._clips, CROWD: crowd(folder, judges=False)})

    @classmethod
    def load(cls, folder: Path, without: tuple[str, ...] = (), only: tuple[str, ...] = ()) -> People:
        """Everybody in `folder`, or `only` these, but not `without`. RecordingsMissing if that is nobody."""
        clips: dict[str, list[list[Pcm]]] = {}
        root = folder / "recordings"
        for path in sorted(root.glob("*.wav"), key=_order):
            digit, speaker, _ = path.stem.split("_")
            if speaker in without or (only and speaker not in only):
                continue
            clip = normalise(trim(from_pcm16(*read_wave(path))))
            clips.setdefault(speaker, [[] for _ in range(_DIGITS)])[int(digit)].append(clip)
        clips = {speaker: said for speaker, said in clips.items() if all(said)}
        if not clips:
            raise RecordingsMissing(
                f"{root}: expected recordings DIGIT_SPEAKER_INDEX.wav of real people; `git clone {HOME} {folder}` "
                "brings them, or name another folder (SPEECH=DIR)"
            )
        return cls(clips)

    def takes(self, speaker: int, digit: int) -> int:
        """How many recordings there are of a digit by a speaker, by numbers."""
        return len(self._clips[self.speakers[speaker]][digit])

    def clip(self, speaker: int, digit: int, take: int) -> Pcm:
        """One recording, float32 at 16 kHz."""
        return self._clips[self.speakers[speaker]][digit][take]


def _order(path: Path) -> tuple[str, str, int]:
    parts = path.stem.split("_")
    if len(parts) != 3 or not parts[0].isdigit() or int(parts[0]) >= _DIGITS or not parts[2].isdigit():
        raise ValueError(f"{path}: expected a name DIGIT_SPEAKER_INDEX.wav")
    return parts[1], parts[0], int(parts[2])
