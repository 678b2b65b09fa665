"""Who speaks in a conversation, and how a word of theirs sounds each time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..words import DIGITS
from . import warps
from .people import People
from .voices import Pcm, VoiceBank

NOBODY = -1
_PEOPLE_SHARE = 0.6  # of training conversations: their English digits are a real person's
_CROWD_SHARE = 0.65  # of those: strangers are many, and those who said all digits few
_TAKES = 300  # ways in which a person says a digit in training: each a recording, warped; 200 MB for four people
_CROWD_TAKES = 1600
_WARPED = 0.3  # share of a synthetic voice's words that are warped in training
_PLAIN_SHARE = 0.6  # of speakers who are eSpeak's; the others are of any other synthesiser that was found


@dataclass(frozen=True)
class Speaker:
    """Numbers of a voice of the bank and of a person, or NOBODY."""

    voice: int
    person: int = NOBODY


class Cast:
    """Draws speakers and their words. With `training` words are warped: no two are alike."""

    def __init__(
        self, bank: VoiceBank, people: People | None = None, training: bool = False, share: float = 1.0
    ) -> None:
        self.bank, self.people, self.training = bank, people, training
        self._takes: dict[tuple[int, int, int], NDArray[np.int16]] = {}
        self._share = (_PEOPLE_SHARE if training else share) if people else 0.0
        # Voices that say everything stand in for those who do not.
        self._plain = [i for i, voice in enumerate(bank.voices) if voice.synth == "espeak" and voice.timbre]
        self._others = [i for i in range(len(bank)) if i not in set(self._plain)]

    def speaker(self, rng: np.random.Generator) -> Speaker:
        """Somebody for a conversation."""
        if self._others and self._plain:
            chosen = self._plain if rng.random() < _PLAIN_SHARE else self._others
            voice = chosen[int(rng.integers(len(chosen)))]
        else:
            voice = int(rng.integers(len(self.bank)))
        if self.people is None or rng.random() >= self._share:
            return Speaker(voice)
        crowd = self.people.crowd
        known = [i for i in range(len(self.people.speakers)) if i != crowd]
        if crowd is not None and (not known or rng.random() < _CROWD_SHARE):
            return Speaker(voice, crowd)
        return Speaker(voice, known[int(rng.integers(len(known)))])

    def word(self, rng: np.random.Generator, speaker: Speaker, language: str, text: str) -> Pcm:
        """float32 at 16 kHz, peak 0.5: an English digit is the person's, everything else the voice's."""
        if speaker.person != NOBODY and self.people is not None and language == "en" and text in DIGITS["en"]:
            digit = DIGITS["en"].index(text)
            if self.training:
                takes = _CROWD_TAKES if speaker.person == self.people.crowd else _TAKES
                return self._warped(self.people, speaker.person, digit, int(rng.integers(takes)))
            return self.people.clip(speaker.person, digit, int(rng.integers(self.people.takes(speaker.person, digit))))
        voice = speaker.voice
        if not self.bank.knows(voice, language, text):
            voice = self._plain[voice % len(self._plain)]
        clip = self.bank.word(voice, language, text)
        if self.training and rng.random() < _WARPED:
            return warps.warp(clip, rng, warps.OF_SYNTHS)
        return clip

    def _warped(self, people: People, person: int, digit: int, take: int) -> Pcm:
        """Take number `take`, the same every time: a warp costs 10 ms, and the ears ask for hundreds a second."""
        key = person, digit, take
        if key not in self._takes:
            clip = people.clip(person, digit, take % people.takes(person, digit))
            clip = warps.warp(clip, np.random.default_rng([78, *key]), warps.OF_PEOPLE)
            self._takes[key] = np.round(clip * 32767).astype(np.int16)
        return self._takes[key].astype(np.float32) / 32767
