"""A judge by template: which of the clean reference words is a stretch of audio nearest to?

Log-mel frames, mean-normalised, compared by dynamic time warping (Sakoe & Chiba 1978) with a path length that depends
on both lengths only, so that scores of long and short words compare.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..world.speech.voices import SAMPLE_RATE, Pcm

_WINDOW, _HOP, _BANDS = 400, 160, 32
_FLOOR = 1e-5
_EDGE = 0.02  # of the peak: quieter leading and trailing frames are not part of a word


class DtwJudge:
    """Compares with `references`: word -> clean audio."""

    def __init__(self, references: dict[str, Pcm]) -> None:
        if not references:
            raise ValueError("references: expected at least one word")
        self.words = tuple(references)
        known = [features(references[word]) for word in self.words]
        self._lengths = np.array([len(f) for f in known])
        self._words = np.zeros((len(known), int(self._lengths.max()), 2 * _BANDS))
        for row, f in zip(self._words, known, strict=True):
            row[: len(f)] = f

    def judge(self, pcm: Pcm) -> str:
        """The nearest word; '' for (nearly) silent audio."""
        heard = features(pcm)
        if not len(heard):
            return ""
        return self.words[int(np.argmin(distances(heard, self._words, self._lengths)))]


def features(pcm: Pcm) -> NDArray[np.float64]:
    """[T, 2 * bands]: log-mel and its slope of the audible part, 10 ms frames; empty if nothing is audible."""
    if pcm.size < _WINDOW or float(np.abs(pcm).max()) < 0.01:
        return np.zeros((0, 2 * _BANDS))
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(pcm, _WINDOW // 2), _WINDOW)[::_HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(_WINDOW), 512)) ** 2
    level = np.sqrt(power.sum(axis=1))
    loud = np.flatnonzero(level > _EDGE * level.max())
    mel = np.log(power[loud[0] : loud[-1] + 1] @ _MEL + _FLOOR)
    mel -= mel.mean(axis=0)
    slope = np.gradient(mel, axis=0) if len(mel) > 1 else np.zeros_like(mel)
    return np.concatenate([mel, 2.0 * slope], axis=1)


def _mel_filters() -> NDArray[np.float64]:
    top = 2595.0 * np.log10(1.0 + SAMPLE_RATE / 2 / 700.0)
    edges = 700.0 * (10.0 ** (np.linspace(60.0, top, _BANDS + 2) / 2595.0) - 1.0)
    frequency = np.fft.rfftfreq(512, 1 / SAMPLE_RATE)[:, None]
    rising = (frequency - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequency) / (edges[2:] - edges[1:-1])
    return np.maximum(np.minimum(rising, falling), 0.0)


_MEL = _mel_filters()


def distances(a: NDArray[np.float64], words: NDArray[np.float64], lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Symmetric DTW distance of `a` [T, F] to every word [W, S, F], of `lengths` [W] frames, per unit of path weight (a
    diagonal step counts twice)."""
    square = (a**2).sum(1)[:, None, None] + (words**2).sum(2)[None]
    cost = np.sqrt(np.maximum(square - 2.0 * np.einsum("tf,wsf->tws", a, words, optimize=True), 0.0))
    before = np.full((len(words), words.shape[1] + 1), np.inf)
    before[:, 0] = 0.0
    for row in cost:
        best = np.minimum(before[:, 1:] + row, before[:, :-1] + 2.0 * row)
        # Steps along the word: now[j] = min over i <= j of best[i] + row[i + 1] + ... + row[j].
        walked = np.cumsum(row, axis=1)
        now = np.full_like(before, np.inf)
        now[:, 1:] = np.minimum.accumulate(best - walked, axis=1) + walked
        before = now
    return before[np.arange(len(words)), lengths] / (len(a) + lengths)
