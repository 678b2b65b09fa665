"""What the user of these tests says: a WAV file, and what the agent should answer to it."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

from client.web.media import Resampler, to_pcm16
from engine_builder.training.world.speech.espeak import RATE as SPOKEN_RATE
from engine_builder.training.world.speech.espeak import speak

RATE = 24_000
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Seconds, and the number that is said then. The agent answers for about two seconds: the fifth is a barge-in.
# Silence for ten seconds before the tenth; then the client connects anew, and one more.
SAID = (
    *((1.0, 7), (4.0, 3), (7.0, 5), (10.0, 8), (11.2, 4), (14.2, 6), (17.2, 1), (20.2, 2), (23.2, 9), (34.0, 7)),
    (39.0, 3),
)
BARGED = 8  # its answer is cut short
AGAIN_AT, SECONDS = 38.0, 40.0


def answer(number: int) -> str:
    """What the tutor says to a number."""
    return f"{NUMBERS[(number + 1) % 10]} comes after {NUMBERS[number]}"


def write_user(folder: Path) -> None:
    """user.wav, and the same in two conversations: before.wav and after.wav."""
    sound = np.zeros(round(SECONDS * RATE), np.float32)
    for start, number in SAID:
        word = Resampler(SPOKEN_RATE, RATE).feed(speak(NUMBERS[number], "en-us", 50, 150).astype(np.float32) / 32768)
        begin = round(start * RATE)
        sound[begin : begin + word.size] = word
    again = round(AGAIN_AT * RATE)
    for name, part in (("user", sound), ("before", sound[:again]), ("after", sound[again:])):
        with wave.open(str(folder / f"{name}.wav"), "wb") as out:
            out.setparams((1, 2, RATE, 0, "NONE", ""))
            out.writeframes(to_pcm16(part))
