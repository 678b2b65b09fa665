"""One recording made into many: other vocal tracts, pitches, tempi, microphones and rooms.

Few people were recorded, and each sounds like himself. What tells speakers apart is warped at random here: length of
the vocal tract and pitch (vocal-tract-length perturbation, Jaitly & Hinton 2013), tempo (WSOLA, Verhelst & Roelands
1993), and the channel: band limits, colour, telephone, clipping, a cut beginning. Rooms belong to conversations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .voices import SAMPLE_RATE, Pcm, normalise

_FRAME, _HOP, _FFT = 512, 128, 512  # 32 ms and 8 ms
_LIFTER = 24  # cepstral coefficients that make the envelope: formants, no harmonics
_WINDOW = np.hanning(_FRAME + 1)[:-1].astype(np.float32)
_STRETCH_FRAME, _STRETCH_SEEK = 480, 120  # 30 ms, 7.5 ms


@dataclass(frozen=True)
class Spread:
    """How far a clip may be warped: ratios are drawn log-uniform in [1 / x, x]."""

    rate: float = 1.22  # pitch and formants together, as of a larger or a smaller person
    tract: float = 1.12  # formants alone
    tempo: float = 1.25
    channel: bool = True


OF_PEOPLE = Spread()
OF_SYNTHS = Spread(rate=1.08, tract=1.08, tempo=1.10)


def warp(clip: Pcm, rng: np.random.Generator, spread: Spread) -> Pcm:
    """Another speaker's way to say `clip`, peak 0.5."""

    def ratio(most: float) -> float:
        return float(np.exp(rng.uniform(-1, 1) * np.log(most)))

    rate, tract, tempo = ratio(spread.rate), ratio(spread.tract), ratio(spread.tempo)
    out = _resampled(clip, rate)
    if abs(tract - 1) > 0.02:
        out = _formants(out, tract)
    # The change of rate also changed the tempo, which is drawn on its own.
    out = _stretched(out, tempo * rate)
    if spread.channel:
        out = _channel(out, rng)
    return normalise(out)


def in_room(pcm: Pcm, rng: np.random.Generator) -> Pcm:
    """The same samples in a `room`."""
    return convolved(pcm, room(rng))[: pcm.size]


def room(rng: np.random.Generator) -> Pcm:
    """An impulse response: the direct sound, then an exponential tail of noise (60 dB in 0.08 to 0.45 s)."""
    size = int(rng.uniform(0.08, 0.45) * SAMPLE_RATE)
    tail = rng.standard_normal(size) * np.exp(-6.9 * np.arange(size) / size)
    tail[: int(0.002 * SAMPLE_RATE)] = 0.0
    tail *= 10.0 ** (-rng.uniform(2, 14) / 20) / max(float(np.sqrt((tail**2).sum())), 1e-6)
    tail[0] = 1.0
    return tail.astype(np.float32)


def _channel(pcm: Pcm, rng: np.random.Generator) -> Pcm:
    if rng.random() < 0.12:
        pcm = pcm[int(rng.integers(0, 640)) :]
    size = pcm.size
    spectrum = np.fft.rfft(pcm, _fast(size))
    frequency = np.linspace(0.0, SAMPLE_RATE / 2, spectrum.size)
    # Colour: a smooth curve of gains over the mel axis, and edges as of cheap microphones and telephones.
    knots = np.linspace(0.0, 2840.0, 7)
    gains = np.interp(2595.0 * np.log10(1.0 + frequency / 700.0), knots, rng.normal(0.0, 3.0, knots.size))
    top = float(rng.choice([3400.0, 4000.0, 5500.0, 8000.0], p=[0.25, 0.25, 0.15, 0.35]))
    bottom = float(rng.choice([20.0, 120.0, 300.0], p=[0.6, 0.25, 0.15]))
    gains = gains - 24.0 * np.clip((frequency - top) / 400.0, 0, 3) - 12.0 * np.clip((bottom - frequency) / 100.0, 0, 3)
    pcm = np.fft.irfft(spectrum * 10.0 ** (gains / 20.0))[:size].astype(np.float32)
    if rng.random() < 0.1:
        pcm = _telephone(normalise(pcm))
    if rng.random() < 0.1:
        loud = float(np.abs(pcm).max()) * rng.uniform(0.3, 0.8)
        pcm = np.clip(pcm, -loud, loud)
    return pcm


def _telephone(pcm: Pcm) -> Pcm:
    """mu-law of 8 bits (ITU-T G.711) and back."""
    level = np.sign(pcm) * np.log1p(255.0 * np.abs(pcm)) / np.log(256.0)
    level = np.round(level * 127.0) / 127.0
    return (np.sign(level) * np.expm1(np.abs(level) * np.log(256.0)) / 255.0).astype(np.float32)


def _resampled(pcm: Pcm, rate: float) -> Pcm:
    """Faster and higher by `rate`, by linear interpolation of an already band-limited sound."""
    at = np.arange(0.0, pcm.size - 1, rate)
    return np.interp(at, np.arange(pcm.size), pcm).astype(np.float32)


def _formants(pcm: Pcm, ratio: float) -> Pcm:
    """The spectral envelope moved by `ratio` up, the pitch where it was."""
    padded = np.pad(pcm, (_FRAME, _FRAME + _HOP))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FRAME)[::_HOP] * _WINDOW
    spectrum = np.fft.rfft(frames, _FFT)
    log = np.log(np.abs(spectrum) + 1e-4)
    cepstrum = np.fft.irfft(log, _FFT)
    cepstrum[:, _LIFTER:-_LIFTER] = 0.0
    envelope = np.fft.rfft(cepstrum, _FFT).real
    bins = np.arange(envelope.shape[1])
    source = np.minimum(bins / ratio, bins[-1])
    low = source.astype(np.int64)
    high = np.minimum(low + 1, bins[-1])
    moved = envelope[:, low] + (source - low) * (envelope[:, high] - envelope[:, low])
    frames = np.fft.irfft(spectrum * np.exp(np.clip(moved - envelope, -3.0, 3.0)), _FFT) * _WINDOW
    return _overlapped(frames, _HOP)[_FRAME : _FRAME + pcm.size]


def _stretched(pcm: Pcm, ratio: float) -> Pcm:
    """`ratio` times as long, the pitch kept."""
    frame, hop = _STRETCH_FRAME, _STRETCH_FRAME // 2
    if abs(ratio - 1.0) < 0.02 or pcm.size < 3 * frame:
        return pcm
    window = np.hanning(frame + 1)[:-1].astype(np.float32)
    count = max(2, int(pcm.size * ratio - frame) // hop + 1)
    padded = np.pad(pcm, (0, 2 * frame + _STRETCH_SEEK))
    out, at = np.zeros((count - 1) * hop + frame, dtype=np.float32), 0
    for i in range(count):
        if i:
            natural = padded[at + hop : at + hop + frame]
            guess = min(int(i * hop / ratio), pcm.size - 1)
            start = max(0, guess - _STRETCH_SEEK)
            near = np.lib.stride_tricks.sliding_window_view(padded[start : guess + _STRETCH_SEEK + frame], frame)
            at = start + int(np.argmax(near @ natural))
        out[i * hop : i * hop + frame] += padded[at : at + frame] * window
    return out


def _overlapped(frames: NDArray[np.float64], hop: int) -> Pcm:
    count, size = frames.shape
    out = np.zeros((count - 1) * hop + size)
    for part in range(size // hop):  # frames of one phase do not overlap
        block = frames[:, part * hop : (part + 1) * hop].reshape(-1)
        out[part * hop : part * hop + block.size] += block
    return (out / 1.5).astype(np.float32)  # sum of squared Hann windows at a quarter's hop


def convolved(pcm: Pcm, response: Pcm) -> Pcm:
    """All of it: as long as both together, but for one sample."""
    size = pcm.size + response.size - 1
    n = _fast(size)
    return np.fft.irfft(np.fft.rfft(pcm, n) * np.fft.rfft(response, n), n)[:size].astype(np.float32)


def _fast(size: int) -> int:
    """A length of at least `size` that the Fourier transform likes: 2^n or 3 * 2^n."""
    whole = 1 << (size - 1).bit_length()
    return whole * 3 // 4 if whole * 3 // 4 >= size else whole
