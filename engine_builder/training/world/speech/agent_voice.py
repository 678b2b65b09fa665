"""The agent's one voice: every word always sounds the same and fills whole units.

A word starts on a unit boundary and its last 20 ms are silent, so the codec's latents of a word do not depend on its
neighbours. (A voice that varies is what the prototype could not learn: reference notes, "What failed".)
"""

from __future__ import annotations

import numpy as np

from ..words import LANGUAGES, agent_words
from .voices import SAMPLE_RATE, Pcm, Voice, render

UNIT = SAMPLE_RATE * 160 // 1000
_HOP = 320
_SPARE = 480  # samples of decaying tail that may be faded out to save a unit
_FUNCTION_WORDS = frozenset(
    ["comes", "after", "kommt", "nach", "say", "a", "you", "are", "sag", "eine", "number", "zahl"]
)


def _speaker(fast: bool) -> Voice:
    # Timbre f5 at these speeds: the off-the-shelf recogniser knows every English word of it on clean audio.
    return Voice("agent", (("en", "en-us"), ("de", "de")), "f5", 50, 240 if fast else 200)


class AgentVoice:
    """Units [U, 2560] of every word the agent can say."""

    def __init__(self) -> None:
        self._units = {
            (language, word): _to_units(render(word, _speaker(word in _FUNCTION_WORDS), language))
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
