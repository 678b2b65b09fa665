"""What a microphone hears besides speech: coloured noise, hum, knocks and music, cut from seeded banks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .speech.voices import SAMPLE_RATE, Pcm

_BANK_SECONDS = 24
_NOISE_SLOPES = (0.0, 0.5, 1.0, 1.5, 2.0)  # power spectra 1/f^slope: white, pink, ..., brown
_SCALE = (0, 2, 4, 5, 7, 9, 11)
_NOTES = 14  # two octaves


class Room:
    """Banks of noise and of `tunes` pieces of music, with unit RMS. Banks of different seeds share no sample."""

    def __init__(self, seed: int, tunes: int = 6) -> None:
        rng = np.random.default_rng([seed, 77])
        self._noises = [_coloured(rng, slope) for slope in _NOISE_SLOPES] + [_hum(rng)]
        self._music = [_tune(rng) for _ in range(tunes)]

    def noise(self, rng: np.random.Generator, samples: int) -> Pcm:
        """A stretch of steady noise or hum [samples], RMS 1."""
        return _cut(self._noises[rng.integers(len(self._noises))], rng, samples)

    def music(self, rng: np.random.Generator, samples: int) -> Pcm:
        """A stretch of instrumental music [samples], RMS about 1."""
        return _cut(self._music[rng.integers(len(self._music))], rng, samples)

    def knock(self, rng: np.random.Generator) -> Pcm:
        """One to three short percussive sounds, peak about 1."""
        size = int(rng.integers(400, 1600))
        decay = np.exp(-np.arange(size) / rng.uniform(60, 300))
        tone = np.sin(2 * np.pi * rng.uniform(80, 1800) / SAMPLE_RATE * np.arange(size))
        hit = decay * (0.5 * tone + 0.5 * rng.standard_normal(size))
        gaps = [np.zeros(int(rng.integers(1200, 5000))) for _ in range(int(rng.integers(0, 3)))]
        parts = [hit]
        for gap in gaps:
            parts += [gap, hit * rng.uniform(0.4, 1.0)]
        return np.concatenate(parts).astype(np.float32)


def _cut(bank: Pcm, rng: np.random.Generator, samples: int) -> Pcm:
    start = int(rng.integers(bank.size))
    return np.take(bank, np.arange(start, start + samples), mode="wrap")


def _unit_rms(x: NDArray[np.float64]) -> Pcm:
    return (x / np.sqrt((x**2).mean())).astype(np.float32)


def _coloured(rng: np.random.Generator, slope: float) -> Pcm:
    size = _BANK_SECONDS * SAMPLE_RATE
    spectrum = np.fft.rfft(rng.standard_normal(size))
    frequency = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 40.0)
    return _unit_rms(np.fft.irfft(spectrum * frequency ** (-slope / 2), size))


def _hum(rng: np.random.Generator) -> Pcm:
    time = np.arange(_BANK_SECONDS * SAMPLE_RATE) / SAMPLE_RATE
    wave = sum(np.sin(2 * np.pi * 50.0 * h * time + rng.uniform(0, 6.28)) / h for h in range(1, 12))
    return _unit_rms(wave + 0.1 * rng.standard_normal(time.size))


def _tune(rng: np.random.Generator) -> Pcm:
    """Plucked chords and a melody in a random key."""
    out = np.zeros(_BANK_SECONDS * SAMPLE_RATE)
    root, beat = rng.uniform(110, 220), int(rng.uniform(0.2, 0.5) * SAMPLE_RATE)
    decay, brightness = rng.uniform(0.1, 0.6) * SAMPLE_RATE, rng.uniform(0.6, 2.0)
    plucked = [_pluck(root, note, np.arange(2 * beat), decay, brightness) for note in range(_NOTES)]
    for start in range(0, out.size - 1, beat):
        for note in rng.integers(0, _NOTES, size=int(rng.integers(1, 4))):
            out[start : start + 2 * beat] += plucked[note][: out.size - start]
    return _unit_rms(out)


def _pluck(root: float, note: int, time: NDArray[np.int64], decay: float, brightness: float) -> NDArray[np.float64]:
    pitch = root * 2.0 ** ((_SCALE[note % 7] + 12 * (note // 7)) / 12)
    envelope = np.exp(-time / decay) * np.minimum(time / 80, 1.0)
    harmonics = np.arange(1, 6)[:, None]
    waves = harmonics**-brightness * np.sin(2 * np.pi * pitch * harmonics / SAMPLE_RATE * time)
    return envelope * waves.sum(axis=0)
