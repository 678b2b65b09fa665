"""Is it the person that was asked for? The face by clean pictures of everybody, the voice by its pitch."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from ..world.face import HEAD, LOOKS, MOUTH_LEVELS, Pose, film
from ..world.speech.agent_voice import agent_voice
from ..world.speech.voices import SAMPLE_RATE, Pcm
from ..world.words import LANGUAGES, PEOPLE, agent_words

_FRAME, _STEP = 800, 160  # samples: two periods of the lowest pitch, and more
_LOWEST, _HIGHEST = 60.0, 400.0  # Hz
_VOICED = 0.5  # least correlation of a frame with itself a period later


def faces_of(frames: NDArray[np.uint8]) -> list[str]:
    """Whose face each frame [K, 64, 64, 3] is nearest to, at any height of the head and opening of the mouth."""
    pictures, people = _faces()
    seen = frames.reshape(len(frames), -1).astype(np.float32)
    # |a - b|^2 without |a|^2, which is the same for every b.
    return [people[i] for i in ((pictures**2).sum(axis=1) - 2 * seen @ pictures.T).argmin(axis=1)]


def voice_of(pcm: Pcm) -> str | None:
    """Whose pitch that of a word is nearest to; None if nothing in it is voiced."""
    pitch = pitch_of(pcm)
    if pitch is None:
        return None
    return min(_pitches(), key=lambda person: abs(np.log(pitch / _pitches()[person])))


def pitch_of(pcm: Pcm) -> float | None:
    """Median fundamental frequency in Hz, by autocorrelation of loud frames (Rabiner 1977)."""
    if pcm.size < 2 * _FRAME:
        return None
    frames = np.lib.stride_tricks.sliding_window_view(pcm.astype(np.float64), 2 * _FRAME)[::_STEP]
    frames = frames[(frames**2).mean(axis=1) > 0.05 * (frames**2).mean(axis=1).max()]
    lags = np.arange(int(SAMPLE_RATE / _HIGHEST), int(SAMPLE_RATE / _LOWEST))
    head = frames[:, :_FRAME]
    product = np.fft.irfft(np.fft.rfft(head, 4 * _FRAME).conj() * np.fft.rfft(frames, 4 * _FRAME))[:, lags]
    energy = np.pad(np.cumsum(frames**2, axis=1), ((0, 0), (1, 0)))
    later = energy[:, lags + _FRAME] - energy[:, lags]
    alike = product / np.sqrt(np.maximum(energy[:, [_FRAME]] * later, 1e-18))
    found = []
    for row in alike[alike.max(axis=1) > _VOICED]:
        # The first peak that is nearly the best: later ones are whole numbers of periods.
        best = int(np.flatnonzero(row >= 0.9 * row.max())[0])
        while best + 1 < row.size and row[best + 1] > row[best]:
            best += 1
        found.append(SAMPLE_RATE / lags[best])
    return float(np.median(found)) if found else None


@cache
def _faces() -> tuple[NDArray[np.float32], tuple[str, ...]]:
    poses = [Pose(mouth, 0, 0, h) for mouth in range(0, MOUTH_LEVELS, 2) for h in range(-HEAD, HEAD + 1, 2)]
    pictures = np.concatenate([film(poses, LOOKS[person]) for person in PEOPLE]).astype(np.float32)
    return pictures.reshape(len(pictures), -1), tuple(person for person in PEOPLE for _ in poses)


@cache
def _pitches() -> dict[str, float]:
    """Of every person: the median over the words."""
    found = {}
    for person in PEOPLE:
        voice = agent_voice(person)
        said = (pitch_of(voice.word(lang, word).reshape(-1)) for lang in LANGUAGES for word in agent_words(lang))
        found[person] = float(np.median([pitch for pitch in said if pitch is not None]))
    return found
