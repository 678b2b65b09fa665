"""The ears of the evaluation: the template judge for both languages, PocketSphinx for English, and their ceilings."""

from __future__ import annotations

from engine_builder.training.judges.figures import Judge
from engine_builder.training.judges.recogniser import Recogniser
from engine_builder.training.judges.rehearsal import template_ear
from engine_builder.training.world.agent_voice import AgentVoice
from engine_builder.training.world.voices import Pcm
from engine_builder.training.world.words import COLOURS, DIGITS, LANGUAGES, agent_words

WORDS = {language: agent_words(language) for language in LANGUAGES}


class Ears:
    """`template` judges every word, `recogniser` English ones; both were given clean words or a word list only."""

    def __init__(self, ids: dict[int, str]) -> None:
        self.voice = AgentVoice()
        self._templates = template_ear(self.voice)
        self._recogniser = Recogniser(WORDS["en"])
        self.template = Judge(ids, self._by_template)
        self.recogniser = Judge(ids, self._by_recogniser)

    def _by_template(self, pcm: Pcm, language: str) -> str:
        return self._templates[language].judge(pcm)

    def _by_recogniser(self, pcm: Pcm, language: str) -> str:
        if language != "en":
            raise ValueError(f"language: the recogniser knows 'en', got {language!r}")
        return self._recogniser.judge(pcm)

    def ceilings(self) -> dict[str, float]:
        """Share of clean reference words that each judge gets right: all words, and the words that answer."""
        found: dict[str, float] = {}
        for name, hear, languages in (
            ("template", self._by_template, LANGUAGES),
            ("recogniser", self._by_recogniser, ("en",)),
        ):
            for kind in ("words", "answers"):
                hits = []
                for language in languages:
                    chosen = WORDS[language] if kind == "words" else (*DIGITS[language], *COLOURS[language])
                    hits += [hear(self.voice.word(language, w).reshape(-1), language) == w for w in chosen]
                found[f"ceiling_{name}_{kind}"] = round(sum(hits) / len(hits), 4)
        return found
