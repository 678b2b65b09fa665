"""One worker of the evaluation: it makes the conversations of a job, plays them, and judges them."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from engine_builder.checkpoint import load_checkpoint
from engine_builder.targets.precision import set_precision
from engine_builder.training.judges.closed_loop import ClosedLoop, Performance
from engine_builder.training.judges.figures import Judge, Tally
from engine_builder.training.world.conversation import HELD_OUT_VOICES, Conversation, Studio
from engine_builder.training.world.personas import Persona
from engine_builder.training.world.scenario import Simulator
from engine_builder.training.world.speech import synths
from engine_builder.training.world.speech.cast import Cast
from engine_builder.training.world.speech.people import People
from engine_builder.training.world.speech.voices import Pcm, Voice, VoiceBank, user_voices

from . import oracle
from .ears import Ears
from .parts import BOTH_JUDGES, TRAINED_RETENTION, Asked, Part
from .stage import Lateness, Stage, performance

_LEFT_OUT = (
    "Lee",
    "Marco",
)  # timbres that PocketSphinx cannot follow either: see engine_builder.training.world.speech.voices
_WINDOW = 16  # units of TRAINED_RETENTION
OnUnit = Callable[[int], None]


@dataclass(frozen=True)
class Sources:
    """Where everything comes from."""

    engines: Path
    checkpoint: Path
    cache: Path
    voices: int = HELD_OUT_VOICES
    speech: Path | None = None  # recordings of real people
    crowd: Path | None = None  # and of many more, of whom a quarter judges


@dataclass
class Outcome:
    """A job done: what the template judge and what the recogniser (English only) counted, one tally a conversation."""

    part: Part
    template: list[Tally] = field(default_factory=list)
    recogniser: list[Tally] = field(default_factory=list)


def left_out_voices(count: int) -> list[Voice]:
    """The held-out speakers with the two timbres that the held-out split leaves out."""
    voices = user_voices("held_out", count)
    return [replace(v, name=f"left_out-{i}", timbre=_LEFT_OUT[i % len(_LEFT_OUT)]) for i, v in enumerate(voices)]


def flite_voices(count: int, seed: int = 5) -> list[Voice]:
    """`count` English users of a synthesiser that is never trained with; none if it is not installed."""
    rng = random.Random(f"flite-{seed}")
    names = synths.installed().get("flite", {}).get("en", ())
    return [
        Voice(f"flite-{i}", (("en", names[i % len(names)]),), "", 50, rng.randint(130, 200), "flite")
        for i in range(count if names else 0)
    ]


def cast(name: str, sources: Sources) -> Cast:
    """Who speaks in a part: 'held_out' voices, those 'left_out' of them, a 'foreign_synth' never trained with, or
    'people', of whom English digits are known, or 'strangers', other people, whose voices were never trained with."""
    if name == "people":
        if sources.speech is None:
            raise ValueError("speech: expected a folder of recordings for a part with people")
        bank = VoiceBank.load(user_voices("held_out", sources.voices), sources.cache)
        return Cast(bank, People.load(sources.speech))
    if name == "strangers":
        if sources.crowd is None:
            raise ValueError("crowd: expected a folder of recordings for a part with strangers")
        return Cast(
            VoiceBank.load(user_voices("held_out", sources.voices), sources.cache), People.strangers(sources.crowd)
        )
    chosen = {
        "held_out": lambda: user_voices("held_out", sources.voices),
        "left_out": lambda: left_out_voices(sources.voices),
        "foreign_synth": lambda: flite_voices(sources.voices),
    }[name]()
    return Cast(VoiceBank.load(chosen, sources.cache))


def _persona(asked: Asked | None, seed: int) -> Persona | None:
    rng = np.random.default_rng([7, seed])
    if asked is None:
        return None
    return Persona.unseen(rng) if asked.unseen else Persona.of(rng, asked.told, asked.face, asked.voice)


def _louder(pcm: Pcm, decibel: float) -> Pcm:
    """Clipped, as a sound card does."""
    return np.clip(pcm * np.float32(10.0 ** (decibel / 20)), -1.0, 1.0)


def prepare(sources: Sources, parts: Sequence[Part]) -> None:
    """Renders all voices into the cache, so that workers find them there."""
    for name in {part.cast for part in parts}:
        cast(name, sources)


class Worker:
    """Plays jobs in this process, one thread. What is costly is loaded when it is first needed, and kept."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self.ears = Ears()
        self._studios: dict[str, Studio] = {}

    def play(self, part: Part, first: int, last: int, on_unit: OnUnit | None = None) -> Outcome:
        """Conversations first .. last - 1 of `part`. `on_unit` may raise to end it."""
        talks = self.conversations(part, first, last)
        outcome = Outcome(part)
        if part.way == "oracle":
            outcome.template.append(self._oracle(talks, on_unit))
            return outcome
        for talk, done in zip(talks, self._perform(part, talks, first, on_unit), strict=True):
            self._judge(part, talk, done, outcome)
        return outcome

    def conversations(self, part: Part, first: int, last: int) -> list[Conversation]:
        """What is played, by seed."""
        studio = self._studio(part)
        talks = [
            studio.conversation(
                seed, part.units, language=part.language, quiet=part.quiet, persona=_persona(part.persona, seed)
            )
            for seed in range(first, last)
        ]
        return [replace(talk, user_pcm=_louder(talk.user_pcm, part.microphone)) for talk in talks]

    def _studio(self, part: Part) -> Studio:
        studio = self._studios.get(part.cast)
        if studio is None:
            studio = Studio(self.sources.cache, "held_out", cast=cast(part.cast, self.sources))
            self._studios[part.cast] = studio
        studio.simulator = Simulator(studio.cast, studio.agent, part.habits, part.later)
        return studio

    def _perform(self, part: Part, talks: list[Conversation], first: int, on_unit: OnUnit | None) -> list[Performance]:
        if part.way == "torch":
            # Norms stay float32 beside matrices of another type, which PyTorch thinks worth a warning.
            warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
            model = set_precision(load_checkpoint(self.sources.checkpoint), part.precision)
            return ClosedLoop(model, _WINDOW, part.steps).run(talks)
        lateness = Lateness() if part.way == "degraded" else None
        with Stage(self.sources.engines, len(talks), part.units, part.keep, part.steps, lateness) as stage:
            seeds = range(first, first + len(talks))
            echoes = [part.echo.path(np.random.default_rng(seed)) for seed in seeds] if part.echo else []
            return stage.run(talks, on_unit, echoes)

    def _oracle(self, talks: list[Conversation], on_unit: OnUnit | None) -> Tally:
        tally = Tally()
        with Stage(self.sources.engines, len(talks), len(talks[0].state), TRAINED_RETENTION, steps=1) as stage:
            played = stage.play(talks, on_unit)
            for talk, units in zip(talks, played, strict=True):
                done = performance(stage.config.language.states, units)
                self.ears.template.conversation(talk.scenario, done, tally)
        oracle.compare(load_checkpoint(self.sources.checkpoint), talks, played, _WINDOW, tally)
        return tally

    def _judge(self, part: Part, talk: Conversation, done: Performance, outcome: Outcome) -> None:
        def heard_by(judge: Judge) -> Tally:
            tally = Tally()
            judge.conversation(talk.scenario, done, tally)
            return tally

        if part.quiet:
            tally = Tally()
            self.ears.template.quiet(done, tally)
            outcome.template.append(tally)
            return
        outcome.template.append(heard_by(self.ears.template))
        if talk.scenario.language == "en" and part.group in BOTH_JUDGES:
            outcome.recogniser.append(heard_by(self.ears.recogniser))
