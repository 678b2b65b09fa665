"""Other voices than eSpeak's own: its synthesiser with drawn timbres, MBROLA's voices, SVOX Pico, and Flite.

Drawn timbres, MBROLA's diphones and Pico train; Flite is never trained with, it judges. All are called as commands and
optional: `installed` says which are here, `HOW_TO_GET` where they come from.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import timbres

HOW_TO_GET = {
    "drawn": "apt-get install espeak-ng",
    "mbrola": "apt-get install mbrola 'mbrola-us?' mbrola-en1 'mbrola-de?' (Debian: non-free; Ubuntu: multiverse)",
    "pico": "apt-get install libttspico-utils (Debian: non-free; Ubuntu: multiverse)",
    "flite": "apt-get install flite",
}
# eSpeak's names of MBROLA voices that speak English, natively or with the accent of another language, and German.
_MBROLA = {
    "en": (
        *("mb-us1", "mb-us2", "mb-us3", "mb-en1", "mb-af1-en", "mb-nl2-en", "mb-fr1-en", "mb-fr4-en", "mb-de1-en"),
        *("mb-de2-en", "mb-de3-en", "mb-de4-en", "mb-de5-en", "mb-de6-en", "mb-gr2-en", "mb-hu1-en", "mb-pl1-en"),
        *("mb-ro1-en", "mb-sw1-en", "mb-sw2-en"),
    ),
    "de": tuple(f"mb-de{i}" for i in range(1, 9)),
}
_DRAWN = {
    "en": tuple(f"{('en-us', 'en-gb', 'en-gb-x-rp')[i % 3]}+made{i}" for i in range(timbres.COUNT)),
    "de": tuple(f"de+made{i}" for i in range(timbres.COUNT)),
}
_PICO = {"en": ("en-US", "en-GB"), "de": ("de-DE",)}
_FLITE = {"en": ("kal", "awb", "rms", "slt")}
TRAINED_WITH = ("drawn", "mbrola", "pico")
_USUAL_PACE = 170  # words a minute of the voices that take a factor instead


@lru_cache(maxsize=1)
def installed() -> dict[str, dict[str, tuple[str, ...]]]:
    """Synthesiser -> language -> the voices of it that are installed."""
    have: dict[str, dict[str, tuple[str, ...]]] = {}
    if shutil.which("espeak-ng"):
        have["drawn"] = _DRAWN
    if shutil.which("espeak-ng") and shutil.which("mbrola"):
        have["mbrola"] = {language: tuple(v for v in names if _diphones(v)) for language, names in _MBROLA.items()}
    if shutil.which("pico2wave"):
        have["pico"] = _PICO
    if shutil.which("flite"):
        have["flite"] = _FLITE
    return {synth: voices for synth, voices in have.items() if voices["en"]}


def speak(synth: str, text: str, voice: str, pitch: int, speed: int) -> tuple[NDArray[np.int16], int]:
    """`text` (a word) and its sample rate. pitch 0..99, 50 as the voice is; speed in words a minute."""
    pace, tone = speed / _USUAL_PACE, 2.0 ** ((pitch - 50) / 100)
    with tempfile.TemporaryDirectory(prefix="synth-") as folder:
        wave = Path(folder) / "word.wav"
        if synth in ("mbrola", "drawn"):
            data = ["--path", timbres.home().name] if synth == "drawn" else []
            command = ["espeak-ng", *data, "-v", voice, "-p", str(pitch), "-s", str(speed), "-w", str(wave), text]
        elif synth == "pico":
            marked = f'<speed level="{pace * 100:.0f}"><pitch level="{tone * 100:.0f}">{text}</pitch></speed>'
            command = ["pico2wave", "-l", voice, "-w", str(wave), marked]
        elif synth == "flite":
            command = ["flite", "-voice", voice, "--setf", f"duration_stretch={1 / pace:.3f}", "-t", text, str(wave)]
        else:
            raise ValueError(f"synth: expected 'drawn', 'mbrola', 'pico' or 'flite', got {synth!r}")
        subprocess.run(command, capture_output=True, check=True, timeout=30)
        return read_wave(wave)


def read_wave(path: Path) -> tuple[NDArray[np.int16], int]:
    """Mono 16-bit PCM and its sample rate. ValueError for anything else."""
    import wave

    with wave.open(str(path)) as file:
        if file.getnchannels() != 1 or file.getsampwidth() != 2:
            raise ValueError(f"{path}: expected mono 16-bit PCM")
        return np.frombuffer(file.readframes(file.getnframes()), dtype="<i2"), file.getframerate()


def _diphones(voice: str) -> bool:
    name = voice.split("-")[1]
    return any((Path(root) / "mbrola" / name).exists() for root in ("/usr/share", "/usr/local/share", "/opt"))
