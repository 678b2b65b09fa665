"""Who does what when: a seeded simulation of a user and of the agent that behaves as the model shall learn to.

Time is counted in samples for the user and in units for the agent, who knows at the end of unit k all that was said,
typed and shown until then, and decides unit k with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from .notes import Notes
from .speech.agent_voice import UNIT, AgentVoice
from .speech.cast import Cast, Speaker
from .speech.voices import Pcm
from .words import BACKCHANNELS, LANGUAGES, PEOPLE, Meaning, answer, spoken

LISTEN, SPEAK = 0, 1
# An answer starts in the first unit in which this much has been heard after the word: 60 ms.
HEARD = 960
# A stop comes in the first unit with this much new speech: 130 ms tell a murmur from a word, and leave the stop within
# 1.8 units of the first sound.
STOP_HEARD = 2080
SEEN_FRAMES = 8  # a card is named once it has been in view for 320 ms
_ATTENTIVE_UNITS = 4


@dataclass(frozen=True)
class Utterance:
    """One thing that a user says: samples [start, stop), and how it sounds."""

    start: int
    stop: int
    meaning: Meaning
    language: str
    text: str
    pcm: Pcm = field(compare=False, repr=False)


@dataclass(frozen=True)
class Reaction:
    """What the agent does at unit `unit`: 'answer' (with words), 'stop' or 'nod', and the meaning it reacts to."""

    unit: int
    action: str
    meaning: Meaning
    words: tuple[str, ...] = ()
    source: str = "speech"  # or 'text', 'camera'


@dataclass
class Scenario:
    """K units of a conversation, without sound or picture. face, voice: how the agent shall look and sound."""

    language: str
    speaker: Speaker
    utterances: list[Utterance] = field(default_factory=list)
    typed: dict[int, str] = field(default_factory=dict)
    cards: list[tuple[int, int, int]] = field(default_factory=list)  # colour, first frame, stop frame
    reactions: list[Reaction] = field(default_factory=list)
    state: list[int] = field(default_factory=list)
    starts: list[str | None] = field(default_factory=list)  # word that starts in the unit
    heard: list[str | None] = field(default_factory=list)  # user's word that was understood in the unit
    playing: list[tuple[tuple[str, ...], int] | None] = field(default_factory=list)  # sentence and unit inside it
    attentive: list[bool] = field(default_factory=list)
    notes: list[Notes] = field(default_factory=list)  # what is known after the unit
    face: str = PEOPLE[0]
    voice: str = PEOPLE[0]


@dataclass(frozen=True)
class Habits:
    """Probabilities of what users do next, and in an answer."""

    digit: float = 0.56
    social: float = 0.12
    typed: float = 0.10
    card: float = 0.13
    murmur: float = 0.04  # a backchannel while nobody speaks
    idle: float = 0.05  # nothing for 2 to 5 s
    barge_in: float = 0.42
    backchannel: float = 0.22
    foreign: float = 0.15  # the user speaks the other language than the persona's
    again: float = 0.0  # "again" and "what did I say", beside digits and social words
    recall: float = 0.0
    pause: float = 0.45  # mean seconds between the end of an answer and the user's next word


# Training sees the same behaviour as evaluation, only denser: the first word of an answer is what is hard to learn.
DENSE = Habits(
    digit=0.50, again=0.12, recall=0.06, typed=0.10, card=0.20, barge_in=0.54, backchannel=0.24, foreign=0.22, pause=0.2
)
# Of users of whom only English digits are known.
DIGITS_ONLY = Habits(digit=1.0, social=0.0, card=0.0, typed=0.0, murmur=0.0, backchannel=0.0, foreign=0.0)
# Nobody speaks, types or shows anything.
QUIET = Habits(digit=0, social=0, typed=0, card=0, murmur=0, idle=1.0)


class Simulator:
    """Writes scenarios. One instance serves any number of them; all randomness comes from the generator passed in.

    later: other habits, each from a unit on.
    """

    def __init__(
        self, cast: Cast, agent: AgentVoice, habits: Habits | None = None, later: Mapping[int, Habits] | None = None
    ) -> None:
        self.cast, self.agent, self.habits, self.later = cast, agent, habits or Habits(), later or {}

    def run(
        self,
        rng: np.random.Generator,
        units: int,
        language: str | None = None,
        habits: Habits | None = None,
        notes: Notes | None = None,
    ) -> Scenario:
        """A conversation of `units` units in `language` (drawn if None), with other `habits` if given, after one that
        left `notes`."""
        persona = language or LANGUAGES[int(rng.integers(2))]
        scene = Scenario(persona, self.cast.speaker(rng))
        _Run(self, habits or self.habits, scene, rng, units, notes or Notes()).play()
        return scene


class _Run:
    def __init__(
        self, parent: Simulator, habits: Habits, scene: Scenario, rng: np.random.Generator, units: int, notes: Notes
    ) -> None:
        self.p, self.habits, self.scene, self.rng, self.units = parent, habits, scene, rng, units
        self.notes = notes
        self.sentence: tuple[str, ...] | None = None
        self.position = self.length = 0
        self.word_starts: list[str | None] = []
        self.waiting: list[Utterance] = []  # said or planned, not yet reacted to
        self.free_at = int(rng.uniform(0.1, 1.6) * 16000)  # sample from which the user may start something new
        self.card_due: tuple[int, int] | None = None  # (colour, unit at which it is named)
        self.card_until = 0
        self.attentive_until = -1
        self.heard: str | None = None  # in this unit

    # -- user -----------------------------------------------------------------------------------------------------
    def say(self, start: int, meaning: Meaning) -> Utterance:
        rng, persona = self.rng, self.scene.language
        language = persona if rng.random() >= self.habits.foreign else LANGUAGES[1 - LANGUAGES.index(persona)]
        if meaning.kind == "backchannel":
            language, text = "en", BACKCHANNELS[int(rng.integers(len(BACKCHANNELS)))]
        else:
            text = spoken(meaning, language)
        pcm = self.p.cast.word(rng, self.scene.speaker, language, text)
        utterance = Utterance(start, start + pcm.size, meaning, language, text, pcm)
        self.scene.utterances.append(utterance)
        self.waiting.append(utterance)
        return utterance

    def spoken_meaning(self) -> Meaning:
        h = self.habits
        asks = h.again + h.recall
        if asks and self.rng.random() < asks / (h.digit + h.social + asks):
            return Meaning("again" if self.rng.random() < h.again / asks else "recall")
        if self.rng.random() < h.digit / (h.digit + h.social):
            return Meaning("digit", int(self.rng.integers(10)))
        return Meaning(("greeting", "thanks", "farewell")[int(self.rng.integers(3))])

    def plan(self, unit: int) -> None:
        """The user starts something in a quiet moment, at sample `free_at` or later."""
        rng, h = self.rng, self.habits
        draw = rng.random()
        start = max(self.free_at, unit * UNIT)
        for name in ("typed", "card", "murmur", "idle"):
            chance = getattr(h, name)
            if draw < chance:
                break
            draw -= chance
        else:
            self.say(start, self.spoken_meaning())
            return
        if name == "typed":
            digit = int(rng.integers(10))
            words = (str(digit), spoken(Meaning("digit", digit), self.scene.language))
            self.scene.typed[unit] = words[int(rng.integers(2))]
            self.begin(unit, Meaning("digit", digit), "text")
        elif name == "card" and unit * 4 >= self.card_until:
            colour = int(rng.integers(6))
            first = unit * 4 + int(rng.integers(4))
            stop = first + int(rng.integers(16, 60))
            self.scene.cards.append((colour, first, stop))
            self.card_due = (colour, -(-(first + SEEN_FRAMES) // 4) - 1)
            self.card_until = stop + 8
        elif name == "murmur":
            self.say(start, Meaning("backchannel"))
        else:
            self.free_at = start + int(rng.uniform(2.0, 5.0) * 16000)

    def plan_interruption(self, unit: int) -> None:
        """Decides, when an answer starts at `unit`, whether the user speaks during it."""
        rng, h = self.rng, self.habits
        draw = rng.random()
        if self.length < 4 or draw >= h.barge_in + h.backchannel:
            return
        begin, end = unit * UNIT + UNIT // 2, (unit + self.length - 2) * UNIT
        start = int(rng.integers(begin, end))
        self.say(start, self.spoken_meaning() if draw < h.barge_in else Meaning("backchannel"))

    # -- agent ----------------------------------------------------------------------------------------------------
    def begin(self, unit: int, meaning: Meaning, source: str) -> None:
        words = answer(self.notes.meant(meaning), self.scene.language)
        self.notes = self.notes.after(meaning)
        self.sentence, self.position = words, 0
        pcm, self.word_starts = self.p.agent.sentence(self.scene.language, words)
        self.length = len(pcm)
        self.scene.reactions.append(Reaction(unit, "answer", meaning, words, source))
        self.plan_interruption(unit)

    def rest(self, unit: int) -> None:
        """The agent has finished or there is nothing to answer: when may the user go on?"""
        self.free_at = max(self.free_at, (unit + 1) * UNIT) + int(self.rng.exponential(self.habits.pause) * 16000)

    def hear(self, unit: int) -> None:
        now = (unit + 1) * UNIT
        for utterance in list(self.waiting):
            mumbled = utterance.meaning.kind == "backchannel"
            if not mumbled and self.sentence is not None and now - utterance.start >= STOP_HEARD:
                self.sentence = None
                self.scene.reactions.append(Reaction(unit, "stop", utterance.meaning))
            if now - utterance.start >= HEARD:
                self.attentive_until = unit + _ATTENTIVE_UNITS
            if now - utterance.stop >= HEARD:
                self.waiting.remove(utterance)
                if mumbled:
                    self.scene.reactions.append(Reaction(unit, "nod", utterance.meaning))
                    if self.sentence is None:
                        self.rest(unit)
                else:
                    self.heard = utterance.text
                    self.begin(unit, utterance.meaning, "speech")

    def look(self, unit: int) -> None:
        if self.card_due is not None and unit >= self.card_due[1]:
            colour, self.card_due = self.card_due[0], None
            self.begin(unit, Meaning("colour", colour), "camera")
        if any(first + 4 <= unit * 4 + 4 <= stop for _, first, stop in self.scene.cards):
            self.attentive_until = max(self.attentive_until, unit + 1)

    def play(self) -> None:
        scene = self.scene
        for unit in range(self.units):
            self.heard = None
            self.habits = self.p.later.get(unit, self.habits)
            self.hear(unit)
            self.look(unit)
            quiet = self.sentence is None and not self.waiting and self.card_due is None
            if quiet and self.free_at < (unit + 1) * UNIT:
                self.plan(unit)
                self.hear(unit)  # a word may be planned into the unit that is being heard
            speaking = self.sentence is not None
            scene.state.append(SPEAK if speaking else LISTEN)
            scene.starts.append(self.word_starts[self.position] if speaking else None)
            scene.heard.append(self.heard)
            scene.playing.append((self.sentence, self.position) if self.sentence is not None else None)
            if speaking:
                self.attentive_until = max(self.attentive_until, unit + _ATTENTIVE_UNITS)
                self.position += 1
                if self.position == self.length:
                    self.sentence = None
                    self.rest(unit)
            scene.notes.append(self.notes)
            scene.attentive.append(unit <= self.attentive_until)
