"""Voices: words rendered through espeak-ng, many for users, cached on disk.

Users' voices are split by espeak variant, so that a held-out voice shares no timbre with a training voice.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import espeak
from .words import BACKCHANNELS, LANGUAGES, user_words

Pcm = NDArray[np.float32]
SAMPLE_RATE = 16_000
_TRIM_FRAME = 160  # 10 ms
_TRIM_LEVEL = 0.03  # of the loudest frame: keeps the fricatives of "six" and "sechs"

_ACCENTS: dict[str, tuple[str, ...]] = {
    "en": ("en-us", "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-029", "en-gb-x-gbclan", "en-gb-x-gbcwmd"),
    "de": ("de",),
}
# Timbres; whispers, robots and sound effects of espeak's list are left out.
_TRAIN_TIMBRES = (
    *("m1", "m2", "m3", "m4", "m6", "m7", "f1", "f2", "f4", "Adam", "Alex", "Alicia", "Andy", "Annie", "Antonio"),
    *("Auntie", "Belinda", "Boris", "Caleb", "David", "Denis", "Diogo", "Ed", "Edward", "Gene", "Gustave", "Henrique"),
    *("Hugo", "Iven", "Jacky", "John", "Kaukovalta", "Linda", "Marcelo", "Mario", "Max", "Michael", "Miguel"),
    *("Nguyen", "Pablo", "Pedro", "Quincy", "Rob", "Steph", "Steph2", "Tweaky", "anika", "grandma", "klatt", "klatt3"),
)
# Without Lee and Marco: PocketSphinx knows 60 and 75 % of their clean English digits, and 90 to 95 % of the others'.
_HELD_OUT_TIMBRES = ("m5", "f3", "Andrea", "Benjamin", "Ed2", "Michel", "Mike", "Paul", "Zac", "klatt2")

# Words a minute. Short words are the hard ones, so training has users who speak faster than any that is judged.
_FASTEST = {"train": 235, "held_out": 210}


@dataclass(frozen=True)
class Voice:
    """One speaker: espeak accents by language, timbre variant, pitch (0..99), speed (words a minute)."""

    name: str
    accents: tuple[tuple[str, str], ...]
    timbre: str
    pitch: int
    speed: int

    def espeak_voice(self, language: str) -> str:
        return f"{dict(self.accents)[language]}+{self.timbre}"


def user_voices(split: str, count: int, seed: int = 5) -> list[Voice]:
    """`count` users of the split 'train' or 'held_out', the same for the same arguments."""
    timbres = {"train": _TRAIN_TIMBRES, "held_out": _HELD_OUT_TIMBRES}.get(split)
    if timbres is None:
        raise ValueError(f"split: expected 'train' or 'held_out', got {split!r}")
    rng = random.Random(f"{split}-{seed}")
    voices = []
    for i in range(count):
        accents = tuple((language, rng.choice(_ACCENTS[language])) for language in LANGUAGES)
        pitch, speed = rng.randint(20, 85), rng.randint(125, _FASTEST[split])
        voices.append(Voice(f"{split}-{i}", accents, timbres[i % len(timbres)], pitch, speed))
    return voices


def render(text: str, voice: Voice, language: str) -> Pcm:
    """`text` (a word or [[phonemes]]) spoken at 16 kHz, silence trimmed, peak 0.5. Raises SpeechToolMissing."""
    raw = espeak.speak(text, voice.espeak_voice(language), voice.pitch, voice.speed)
    if raw.size < espeak.RATE // 50:
        raise RuntimeError(f"espeak-ng: no audio for {text!r} with voice {voice.espeak_voice(language)}")
    return _normalise(trim(resample(raw.astype(np.float32) / 32768.0)))


def resample(pcm: Pcm) -> Pcm:
    """22.05 kHz to 16 kHz through the spectrum: exact band limiting, fine for clips of a second."""
    size = pcm.size + (-pcm.size) % 441  # 441 samples become 320
    padded = np.zeros(size, dtype=np.float64)
    padded[: pcm.size] = pcm
    target = size * SAMPLE_RATE // espeak.RATE
    spectrum = np.fft.rfft(padded)[: target // 2 + 1]
    return (np.fft.irfft(spectrum, target) * (target / size)).astype(np.float32)


def trim(pcm: Pcm) -> Pcm:
    """Cuts leading and trailing frames of 10 ms that are below 3 % of the loudest frame."""
    frames = pcm[: pcm.size // _TRIM_FRAME * _TRIM_FRAME].reshape(-1, _TRIM_FRAME)
    level = np.sqrt((frames**2).mean(axis=1))
    loud = np.flatnonzero(level > _TRIM_LEVEL * level.max())
    return pcm[loud[0] * _TRIM_FRAME : (loud[-1] + 1) * _TRIM_FRAME]


def _normalise(pcm: Pcm) -> Pcm:
    return (pcm * (0.5 / max(float(np.abs(pcm).max()), 1e-6))).astype(np.float32)


class VoiceBank:
    """Rendered words of a list of voices, held as 16-bit PCM in one array."""

    def __init__(self, voices: list[Voice], keys: list[str], bounds: NDArray[np.int64], pcm: NDArray[np.int16]) -> None:
        self.voices = voices
        self._index = {key: i for i, key in enumerate(keys)}
        self._bounds, self._pcm = bounds, pcm

    def word(self, voice: int, language: str, text: str) -> Pcm:
        """float32 PCM of a word of `user_words`, or of a backchannel, by voice number."""
        i = self._index[f"{voice}/{language}/{text}"]
        return self._pcm[self._bounds[i] : self._bounds[i + 1]].astype(np.float32) / 32767.0

    @classmethod
    def load(cls, voices: list[Voice], cache: Path) -> VoiceBank:
        """Reads the bank from `cache` or renders it there (a few seconds per ten voices)."""
        wanted = _inventory(voices)
        text = json.dumps([[voice.__dict__ for voice in voices], wanted])
        path = cache / f"voices-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"
        if not path.exists():
            clips = [render(word, voices[v], language) for v, language, word in wanted]
            bounds = np.concatenate([[0], np.cumsum([clip.size for clip in clips])]).astype(np.int64)
            pcm = np.round(np.concatenate(clips) * 32767.0).astype(np.int16)
            cache.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part.npz")
            np.savez(part, bounds=bounds, pcm=pcm)
            part.replace(path)
        stored = np.load(path)
        keys = [f"{v}/{language}/{word}" for v, language, word in wanted]
        return cls(voices, keys, stored["bounds"], stored["pcm"])


def _inventory(voices: list[Voice]) -> list[tuple[int, str, str]]:
    wanted: list[tuple[int, str, str]] = []
    for v in range(len(voices)):
        for language in LANGUAGES:
            wanted += [(v, language, word) for word in user_words(language)]
        wanted += [(v, "en", word) for word in BACKCHANNELS]
    return wanted
