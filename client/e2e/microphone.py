"""What the user says: digits by espeak-ng, and the tutor's answers to them."""

from __future__ import annotations

import functools
import subprocess
import tempfile
import wave
from pathlib import Path

import numpy as np

from ..media.sound import read_audio
from ..stream.units import Float32

RATE = 48_000
LEAD_SECONDS, EVERY_SECONDS = 3.0, 3.15  # no whole number of units: every phase comes up
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGITS = (7, 3, 5, 8, 4, 6, 1, 2, 9, 0)
AUDIBLE = 0.02  # of the loudest sample


def digit(place: int) -> int:
    """Which one is said as word `place`."""
    return DIGITS[place % len(DIGITS)]


def answer(place: int) -> str:
    """What the tutor says to it."""
    return f"{NUMBERS[(digit(place) + 1) % 10]} comes after {NUMBERS[digit(place)]}"


@functools.cache
def speak(number: int, rate: int) -> Float32:
    """float32 [n], from its first to its last audible sample."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        subprocess.run(["espeak-ng", "-v", "en-us", "-s", "150", "-w", file.name, NUMBERS[number]], check=True)
        sound = read_audio(Path(file.name), rate)
    heard = np.flatnonzero(np.abs(sound) > AUDIBLE * np.abs(sound).max())
    return sound[heard[0] : heard[-1] + 1]


def user(words: int, rate: int) -> Float32:
    """float32 [n]: `words` digits, one every EVERY_SECONDS, and silence after the last."""
    sound = np.zeros(round((LEAD_SECONDS + (words + 4) * EVERY_SECONDS) * rate), np.float32)
    for place in range(words):
        word = speak(digit(place), rate)
        begin = round((LEAD_SECONDS + place * EVERY_SECONDS) * rate)
        sound[begin : begin + word.size] = word
    return sound


def write(path: Path, words: int) -> None:
    with wave.open(str(path), "wb") as out:
        out.setparams((1, 2, RATE, 0, "NONE", ""))
        out.writeframes((user(words, RATE) * 32767).astype("<i2").tobytes())
