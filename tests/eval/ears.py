"""The ears of the evaluation: the template judge for both languages, PocketSphinx for English, and their ceilings."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np

from engine_builder.training.judges.figures import Judge
from engine_builder.training.judges.likeness import faces_of, voice_of
from engine_builder.training.judges.rehearsal import hear as by_template
from engine_builder.training.world.face import LOOKS, MOUTH_LEVELS, Pose, film
from engine_builder.training.world.speech.agent_voice import agent_voice
from engine_builder.training.world.speech.voices import SAMPLE_RATE, Pcm
from engine_builder.training.world.words import COLOURS, DIGITS, LANGUAGES, PEOPLE, agent_words

_LEAD, _TAIL = 3200, 4800  # silence around a word, samples: the recogniser estimates the noise floor in it
_DITHER = 1e-3
WORDS = {language: agent_words(language) for language in LANGUAGES}


class Recogniser:
    """PocketSphinx with its bundled US-English model and a grammar of the task's words: a judge off the shelf.

    Knows English words of its dictionary only. Raises ImportError with advice if it is missing.
    """

    def __init__(self, words: Sequence[str]) -> None:
        try:
            from pocketsphinx import Decoder
        except ImportError as error:
            raise ImportError("pocketsphinx: not installed; `pip install pocketsphinx` (extra `eval`)") from error
        self.words = tuple(words)
        with tempfile.TemporaryDirectory() as folder:
            grammar = Path(folder) / "words.gram"
            grammar.write_text(f"#JSGF V1.0; grammar words; public <word> = {' | '.join(self.words)};")
            self._decoder = Decoder(jsgf=str(grammar), loglevel="FATAL", samprate=SAMPLE_RATE)

    def judge(self, pcm: Pcm) -> str:
        """The recognised word, '' if none."""
        peak = max(float(np.abs(pcm).max()), 1e-6)
        padded = np.concatenate([np.zeros(_LEAD), pcm * (0.7 / peak), np.zeros(_TAIL)])
        padded = padded + np.random.default_rng(0).normal(0.0, _DITHER, padded.size)
        decoder = self._decoder
        decoder.start_utt()
        decoder.process_raw((np.clip(padded, -1, 1) * 32767).astype(np.int16).tobytes(), full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        return found.hypstr if found is not None else ""


class Ears:
    """`template` judges every word, `recogniser` English ones; both were given clean words or a word list only."""

    def __init__(self) -> None:
        self._recogniser = Recogniser(WORDS["en"])
        self.template = Judge(by_template)
        self.recogniser = Judge(self._by_recogniser)

    def _by_recogniser(self, pcm: Pcm, language: str, person: str) -> str:
        if language != "en":
            raise ValueError(f"language: the recogniser knows 'en', got {language!r}")
        return self._recogniser.judge(pcm)

    def ceilings(self) -> dict[str, float]:
        """Share of clean reference words that each judge gets right: all words, and the words that answer."""
        found: dict[str, float] = {}
        for name, hear, languages in (
            ("template", by_template, LANGUAGES),
            ("recogniser", self._by_recogniser, ("en",)),
        ):
            for kind in ("words", "answers"):
                hits = []
                for person, language in product(PEOPLE, languages):
                    voice = agent_voice(person)
                    chosen = WORDS[language] if kind == "words" else (*DIGITS[language], *COLOURS[language])
                    hits += [hear(voice.word(language, w).reshape(-1), language, person) == w for w in chosen]
                found[f"ceiling_{name}_{kind}"] = round(sum(hits) / len(hits), 4)
        for person in PEOPLE:
            voice = agent_voice(person)
            said = [voice.word(language, w).reshape(-1) for language in LANGUAGES for w in WORDS[language]]
            found[f"ceiling_voice_{person}"] = round(sum(voice_of(pcm) == person for pcm in said) / len(said), 4)
            poses = product(range(MOUTH_LEVELS), (0, 1, 2), (-7, 0, 7), (-4, 0, 4, 14))
            seen = film([Pose(*pose) for pose in poses], LOOKS[person])
            found[f"ceiling_face_{person}"] = round(faces_of(seen).count(person) / len(seen), 4)
        return found
