"""What the user's loudspeaker plays of the agent comes back into the user's microphone. It is taken out again before
the model hears it.

The server knows what it sent; from that to the microphone is a linear path of unknown delay and room. A partitioned
frequency-domain Kalman filter learns it (Enzner and Vary 2006, "Frequency-domain adaptive Kalman filter for acoustic
echo control in hands-free telephones"; Kuech, Mabande and Enzner 2014, "State-space architecture of the
partitioned-block-based acoustic echo controller", whose names are used here): the share of every new error that is
put down to the path grows with how little the path is known (P) and shrinks with what else is in the microphone (Psi),
so that a user who speaks at the same time does not spoil it.

Of a client without echo (headphones, a canceller of its own) every sample stays as it is: the filter only has a say
while the microphone is quieter with it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .messages import Float32

BLOCKS = 4  # a unit: of 40 ms
PARTS = 12  # blocks of path: 480 ms from the moment at which a unit can first be heard, delay and room together
UNKNOWN = 0.02  # P at first: squared gain that a path may have in each bin
FORGETTING = 0.9995**2  # A squared: rooms change
SMOOTHING = 0.5  # of Psi, from block to block
MEMORY = 0.9  # of the two powers that are compared, a block
BETTER, WORSE = 1.2, 1.05  # by this much quieter it begins to have a say; louder, and it has none
SILENCE = 1e-4  # peak
_FLOOR = 1e-6


class EchoCanceller:
    """Of one session; call `clean` once a unit, in order. 0.7 ms a unit after the agent spoke (`bench_canceller.py`),
    else nothing."""

    def __init__(self, unit_samples: int) -> None:
        self._block = unit_samples // BLOCKS
        bins = self._block + 1
        self._path = np.zeros((PARTS, bins), dtype=np.complex64)  # W
        self._unknown = np.full((PARTS, bins), UNKNOWN, dtype=np.float32)  # P
        self._played = np.zeros((PARTS, bins), dtype=np.complex64)  # X, the newest block first
        self._before = np.zeros(self._block, dtype=np.float32)
        self._else = np.zeros(bins, dtype=np.float32)  # Psi
        self._part = 0  # whose path is next made causal
        self._silent = PARTS  # blocks of silence played last
        self._with = self._without = 0.0  # recent power of the microphone, with what the filter takes out and without
        self.active = False

    def clean(self, microphone: Float32, played: Float32) -> Float32:
        """`microphone` [unit_samples] without what is in it of `played` [unit_samples], what the loudspeaker had to
        play meanwhile, and of what it played before."""
        blocks = np.split(microphone, BLOCKS), np.split(played, BLOCKS)
        return np.concatenate([self._clean(mic, sent) for mic, sent in zip(*blocks, strict=True)])

    def _clean(self, microphone: Float32, played: Float32) -> Float32:
        self._silent = 0 if np.abs(played).max() > SILENCE else self._silent + 1
        if self._silent > PARTS:  # its last sample has left the path
            return microphone
        size = self._block
        self._played = np.roll(self._played, 1, axis=0)
        self._played[0] = np.fft.rfft(np.concatenate([self._before, played]))
        self._before = played
        error = microphone - np.fft.irfft((self._played * self._path).sum(axis=0))[size:].astype(np.float32)
        self._learn(error)

        self._without = MEMORY * self._without + float(error @ error)
        self._with = MEMORY * self._with + float(microphone @ microphone)
        limit = 1 / WORSE if self.active else BETTER
        self.active = self._with > limit * self._without
        return np.clip(error, -1.0, 1.0) if self.active else microphone

    def _learn(self, error: Float32) -> None:
        size, played, unknown = self._block, self._played, self._unknown
        spectrum = np.fft.rfft(np.concatenate([np.zeros_like(error), error])).astype(np.complex64)
        self._else = SMOOTHING * self._else + (1 - SMOOTHING) * _power(spectrum)
        power = _power(played)
        # Half of a circular convolution is thrown away, hence the halves.
        gain = unknown / (0.5 * (power * unknown).sum(axis=0) + self._else + _FLOOR)
        self._path += gain * played.conj() * spectrum
        # Its second half must be zero in time. One part a block is enough, and a tenth of the work.
        part = np.fft.irfft(self._path[self._part])
        part[size:] = 0.0
        self._path[self._part] = np.fft.rfft(part)
        self._part = (self._part + 1) % PARTS
        learnt = np.maximum(1 - 0.5 * gain * power, 0.0)
        self._unknown = FORGETTING * learnt * unknown + (1 - FORGETTING) * _power(self._path)


def _power(spectrum: NDArray[np.complex64]) -> Float32:
    return spectrum.real**2 + spectrum.imag**2
