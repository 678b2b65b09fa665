"""Voices: words rendered by synthesisers, many for users, cached on disk.

Users' voices are split by timbre, so that a held-out voice shares none with a training voice. Most are eSpeak's; what
other synthesisers the machine has speak as well (`synths`), so that nothing hangs on one programme's habits.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..words import BACKCHANNELS, LANGUAGES, user_words
from . import espeak, synths, timbres

Pcm = NDArray[np.float32]
SAMPLE_RATE = 16_000
_TRIM_FRAME = 160  # 10 ms
_TRIM_LEVEL = 0.03  # of the loudest frame: keeps the fricatives of "six" and "sechs"
_SAID_EVERY = 5_000  # words, while they are rendered
_LOG = logging.getLogger(__name__)

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
    """One speaker: voices of the synthesiser by language, timbre variant (eSpeak only), pitch (0..99), speed (words a
    minute). A voice says only the languages that it names."""

    name: str
    accents: tuple[tuple[str, str], ...]
    timbre: str
    pitch: int
    speed: int
    synth: str = "espeak"

    def espeak_voice(self, language: str) -> str:
        accent = dict(self.accents)[language]
        return f"{accent}+{self.timbre}" if self.timbre else accent


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


def other_voices(seed: int = 5) -> list[Voice]:
    """Training voices of the other synthesisers that are installed: three of each timbre, one of those that are drawn,
    and each in both languages if its synthesiser speaks both."""
    rng = random.Random(f"others-{seed}")
    voices = []
    for synth in synths.TRAINED_WITH:
        names = synths.installed().get(synth, {})
        for i, name in enumerate(names.get("en", ()) * (1 if synth == "drawn" else 3)):
            accents = [("en", name)] + [("de", german[i % len(german)]) for german in [names["de"]] if german]
            voices.append(Voice(f"{synth}-{i}", tuple(accents), "", rng.randint(30, 75), rng.randint(125, 220), synth))
    return voices


def render(text: str, voice: Voice, language: str) -> Pcm:
    """`text` (a word or [[phonemes]]) spoken at 16 kHz, silence trimmed, peak 0.5. Raises SpeechToolMissing."""
    if voice.synth == "espeak":
        raw, rate = espeak.speak(text, voice.espeak_voice(language), voice.pitch, voice.speed), espeak.RATE
    else:
        raw, rate = synths.speak(voice.synth, text, dict(voice.accents)[language], voice.pitch, voice.speed)
    if raw.size < rate // 50:
        raise RuntimeError(f"{voice.synth}: no audio for {text!r} with voice {voice.espeak_voice(language)}")
    return normalise(trim(from_pcm16(raw, rate)))


def from_pcm16(raw: NDArray[np.int16], rate: int) -> Pcm:
    """16-bit samples of any rate -> float32 in [-1, 1] at 16 kHz."""
    return resample(raw.astype(np.float32) / 32768.0, rate)


def resample(pcm: Pcm, rate: int = espeak.RATE) -> Pcm:
    """`rate` to 16 kHz through the spectrum: exact band limiting, fine for clips of a second."""
    common = math.gcd(rate, SAMPLE_RATE)
    size = pcm.size + (-pcm.size) % (rate // common)  # so that it becomes a whole number of samples
    padded = np.zeros(size, dtype=np.float64)
    padded[: pcm.size] = pcm
    target = size * SAMPLE_RATE // rate
    spectrum = np.zeros(target // 2 + 1, dtype=np.complex128)
    known = np.fft.rfft(padded)[: target // 2 + 1]
    spectrum[: known.size] = known
    return (np.fft.irfft(spectrum, target) * (target / size)).astype(np.float32)


def trim(pcm: Pcm) -> Pcm:
    """Cuts leading and trailing frames of 10 ms that are below 3 % of the loudest frame."""
    frames = pcm[: pcm.size // _TRIM_FRAME * _TRIM_FRAME].reshape(-1, _TRIM_FRAME)
    level = np.sqrt((frames**2).mean(axis=1))
    loud = np.flatnonzero(level > _TRIM_LEVEL * level.max())
    return pcm[loud[0] * _TRIM_FRAME : (loud[-1] + 1) * _TRIM_FRAME]


def normalise(pcm: Pcm) -> Pcm:
    return (pcm * (0.5 / max(float(np.abs(pcm).max()), 1e-6))).astype(np.float32)


class VoiceBank:
    """Rendered words of a list of voices, held as 16-bit PCM in one array."""

    def __init__(self, voices: list[Voice], keys: list[str], bounds: NDArray[np.int64], pcm: NDArray[np.int16]) -> None:
        self.voices = voices
        self._index = {key: i for i, key in enumerate(keys)}
        self._bounds, self._pcm = bounds, pcm

    def __len__(self) -> int:
        return len(self.voices)

    def knows(self, voice: int, language: str, text: str) -> bool:
        """Whether that voice says that word."""
        return f"{voice}/{language}/{text}" in self._index

    def word(self, voice: int, language: str, text: str) -> Pcm:
        """float32 PCM of a word of `user_words`, or of a backchannel, by voice number."""
        i = self._index[f"{voice}/{language}/{text}"]
        return self._pcm[self._bounds[i] : self._bounds[i + 1]].astype(np.float32) / 32767.0

    @classmethod
    def load(cls, voices: list[Voice], cache: Path) -> VoiceBank:
        """Reads the bank from `cache` or renders it there (a few seconds per ten voices). A file there is found by all
        that decides its content: voices, words, and the text of the drawn timbres."""
        wanted = _inventory(voices)
        drawn = [timbres.variant(number) for number in range(timbres.COUNT)]
        text = json.dumps([[vars(voice) for voice in voices], wanted, drawn])
        path = cache / f"voices-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"
        if not path.exists():
            clips: list[Pcm] = []
            for v, language, word in wanted:
                clips.append(render(word, voices[v], language))
                if len(clips) % _SAID_EVERY == 0:
                    _LOG.info("voices: %d of %d words", len(clips), len(wanted))
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
    for v, voice in enumerate(voices):
        for language, _ in voice.accents:
            wanted += [(v, language, word) for word in user_words(language)]
        if voice.synth == "espeak" and voice.timbre:  # phonemes are eSpeak's own way of writing
            wanted += [(v, "en", word) for word in BACKCHANNELS]
    return wanted
