"""The agent's voices, one a person: every word always sounds the same and fills whole units, as many in every voice.

A word starts on a unit boundary and its last 20 ms are silent, so the codec's latents of a word do not depend on its
neighbours. (A voice that varies is what the prototype could not learn: reference notes, "What failed".)
"""

from __future__ import annotations

from functools import cache

import numpy as np

from ..words import LANGUAGES, PEOPLE, agent_words
from .voices import SAMPLE_RATE, Pcm, Voice, render

UNIT = SAMPLE_RATE * 160 // 1000
_HOP = 320
_SPARE = 480  # samples of decaying tail that may be faded out to save a unit
_FUNCTION_WORDS = frozenset(
    ["comes", "after", "kommt", "nach", "say", "a", "you", "are", "sag", "eine", "number", "zahl"]
)


# The off-the-shelf recogniser knows every answer in these voices on clean audio, English digits and colours. Timbre of
# eSpeak NG and pitch.
_VOICES: dict[str, tuple[str, int]] = {"woman": ("f5", 50), "man": ("m6", 40)}
_SPEEDS = range(120, 330, 10)  # words a minute


class AgentVoice:
    """Units [U, 2560] of every word that this person can say. `agent_voice` makes each once."""

    def __init__(self, person: str = PEOPLE[0]) -> None:
        like = None if person == PEOPLE[0] else agent_voice(PEOPLE[0])
        self._units = {
            (language, word): _said(person, language, word, None if like is None else len(like.word(language, word)))
            for language in LANGUAGES
            for word in agent_words(language)
        }

    def word(self, language: str, word: str) -> Pcm:
        """float32 [U, 2560]; KeyError for a word outside `agent_words(language)`."""
        return self._units[language, word]

    def sentence(self, language: str, words: tuple[str, ...]) -> tuple[Pcm, list[str | None]]:
        """Audio [U, 2560] and, per unit, the word that starts there (None inside a word)."""
        pcm = np.concatenate([self._units[language, word] for word in words])
        starts: list[str | None] = []
        for word in words:
            starts += [word, *[None] * (len(self._units[language, word]) - 1)]
        return pcm, starts

    def vocabulary(self) -> Pcm:
        """All words one after another, float32 [U, 2560]."""
        return np.concatenate(list(self._units.values()))


@cache
def agent_voice(person: str) -> AgentVoice:
    """The voice of one of `PEOPLE`."""
    return AgentVoice(person)


def _said(person: str, language: str, word: str, units: int | None) -> Pcm:
    """`word` at the usual speed, or at the nearest at which it fills so many `units`."""
    usual = 240 if word in _FUNCTION_WORDS else 200
    for speed in sorted(_SPEEDS, key=lambda speed: abs(speed - usual)):
        speaker = Voice("agent", (("en", "en-us"), ("de", "de")), *_VOICES[person], speed)
        said = _to_units(render(word, speaker, language))
        if units is None or len(said) == units:
            return said
    raise RuntimeError(f"voice of the {person}: no speed at which {word!r} takes {units} units")


def _to_units(pcm: Pcm) -> Pcm:
    """Pads to whole units with a silent last hop; a tail of at most `_SPARE` samples is faded out instead."""
    count = max(1, -(-(pcm.size + _HOP - _SPARE) // UNIT))
    room = count * UNIT - _HOP
    out = np.zeros(count * UNIT, dtype=np.float32)
    size = min(room, pcm.size)
    out[:size] = pcm[:size]
    ramp = np.linspace(1.0, 0.0, 160, dtype=np.float32)
    out[size - 160 : size] *= ramp
    return out.reshape(count, UNIT)
