"""What the evaluation consists of: parts, each a number of held-out conversations of one kind, played one way.

What training never saw: the voices (other espeak timbres; accents, speeds and pitches come from the same ranges), the
banks of noise, music and sensor noise (other seeds), and every scene, card, knock and moment, since seeds of the two
splits are different streams. What is shared: the words, the agent's voices, and the programs that draw all this.
Rehearsals use the same held-out voices with other seeds (from 5,000,000), and their mistakes were looked at while the
recipe was mended; the two left-out timbres were not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations

from engine_builder.training.tutor import DEFAULTS
from engine_builder.training.world.echo import Echo
from engine_builder.training.world.scenario import DIGITS_ONLY, Habits
from engine_builder.training.world.words import PEOPLE

MINUTE = 375  # units
BOTH_JUDGES = (
    "main",
    "dense",
    "left-out voices",
)  # groups that the recogniser hears as well; it costs as much as playing
TRAINED_RETENTION: object = DEFAULTS["retention"]
_FIRST_SEED = 8_000_000
_USUAL = Habits()
# No pauses to speak of, so that a minute has as many words as a minute can have.
_BUSY = replace(_USUAL, pause=0.1, idle=0.0, card=0.08, typed=0.05)
# Rare events, often: everything else is as usual, so that they happen between answers and not in a laboratory.
_CARDS = replace(_USUAL, card=0.6, digit=0.25, social=0.05, typed=0.05, barge_in=0.1, backchannel=0.1)
_TYPED = replace(_USUAL, typed=0.6, card=0.05, barge_in=0.2, backchannel=0.1)
_LOUDSPEAKER = Echo(level=(-12.0, -12.0), delay=(0.12, 0.12))
# A digit or two, a minute without any, and then one question for what was said or answered before it.
_FIRST_DIGITS, _MINUTE_WITHOUT = 24, 24 + MINUTE
_TOLD = replace(DIGITS_ONLY, idle=0.0, pause=0.3, barge_in=0.0)
_NOTHING = replace(_TOLD, digit=0.0, murmur=0.1, idle=0.9)
_OTHER_TALK = replace(_USUAL, digit=0.0, typed=0.0, idle=0.3)
_ASKING = replace(_TOLD, digit=0.0, again=0.5, recall=0.5, pause=1000.0)
_ASKED_FOR_DIGIT = replace(_ASKING, again=0.0)
_MURMURS = replace(_USUAL, backchannel=0.8, barge_in=0.0, card=0.05, typed=0.05)


@dataclass(frozen=True)
class Asked:
    """Whom the agent is asked to be (`Persona.of`), or somebody who is none of `PEOPLE`."""

    told: str | None = None
    face: str | None = None
    voice: str | None = None
    unseen: bool = False


@dataclass(frozen=True)
class Part:
    """`talks` conversations of `units` units with consecutive seeds from `seed`.

    way: 'engines' (engines and serving runtime), 'degraded' (the same, late now and then), 'torch' (the model in
    PyTorch, in `precision`), 'oracle' (the one-pass model beside the engines).
    habits, later: of the user, and other ones from a unit on.
    persona: whom the agent is asked to be, if anybody.
    cast: who speaks (`work.cast`).  language: the persona's, drawn if None.  echo: the way of what the model says from
    the user's loudspeaker into the microphone.  microphone: dB by which it is louder than usual.
    group: the figures that it adds to.
    """

    name: str
    talks: int
    units: int
    seed: int
    group: str = "main"
    way: str = "engines"
    habits: Habits = _USUAL
    later: Mapping[int, Habits] = field(default_factory=dict)
    quiet: bool = False
    persona: Asked | None = None
    cast: str = "held_out"
    language: str | None = None
    echo: Echo | None = None
    microphone: float = 0.0
    keep: object = None
    steps: int | None = None
    precision: str = "float32"
    batch: int = 8

    def jobs(self) -> Iterator[tuple[int, int]]:
        """Seeds [first, last) of what one worker plays side by side."""
        for first in range(self.seed, self.seed + self.talks, self.batch):
            yield first, min(first + self.batch, self.seed + self.talks)


def main_parts(talks: int, quiet: int, sessions: int, minutes: int) -> list[Part]:
    """What the figures are made of: many short conversations, since voice, room and noise are drawn once for each.

    quiet: stretches of 10 s.  sessions: conversations of `minutes` minutes.
    """
    dense = -(-talks // 2)
    parts = [
        Part("talks", talks, 150, _FIRST_SEED),
        # Three at a time: every minute of one holds 45 MB of pictures.
        Part("minutes", sessions, minutes * MINUTE, _FIRST_SEED + 500, group="minutes", habits=_BUSY, batch=3),
        Part("cards", dense, 120, _FIRST_SEED + 1000, group="dense", habits=_CARDS),
        Part("typed", dense, 90, _FIRST_SEED + 2000, group="dense", habits=_TYPED),
        Part("murmurs", dense, 120, _FIRST_SEED + 3000, group="dense", habits=_MURMURS),
        Part("quiet", -(-quiet // 2), 124, _FIRST_SEED + 4000, group="quiet", quiet=True),
        Part("left-out voices", dense, 120, _FIRST_SEED + 5000, group="left-out voices", cast="left_out"),
    ]
    echoes = Part("loudspeaker, -12 dB after 120 ms", dense, 150, _FIRST_SEED + 5500, group="echo", echo=_LOUDSPEAKER)
    remember = Part("", dense, _MINUTE_WITHOUT + 48, _FIRST_SEED + 5700, group="nothing", habits=_TOLD)
    parts += [
        echoes,
        replace(remember, name="a minute of nothing", later={_FIRST_DIGITS: _NOTHING, _MINUTE_WITHOUT: _ASKING}),
        replace(
            remember,
            name="a minute of other talk",
            seed=remember.seed + 100,
            group="other talk",
            later={_FIRST_DIGITS: _OTHER_TALK, _MINUTE_WITHOUT - 24: _NOTHING, _MINUTE_WITHOUT: _ASKED_FOR_DIGIT},
        ),
    ]
    return [part for part in parts if part.talks and part.units]


def speaker_parts(talks: int, people: bool, foreign: bool, strangers: bool) -> list[Part]:
    """English digits by real people, by people and by a synthesiser that training never heard, where there are such."""
    wanted = [("people", people, 9000), ("foreign_synth", foreign, 9500), ("strangers", strangers, 9800)]
    return [
        Part(name, talks, 120, _FIRST_SEED + seed, group=name, cast=name, habits=DIGITS_ONLY, language="en")
        for name, there, seed in wanted
        if there and talks
    ]


def persona_parts(talks: int) -> list[Part]:
    """`talks` conversations with each persona that can be asked for, and with somebody unseen."""
    asked = {f"told {person}": Asked(told=person) for person in PEOPLE}
    asked |= {f"shown {person}": Asked(face=person, voice=person) for person in PEOPLE}
    asked |= {f"face of the {person} alone": Asked(face=person) for person in PEOPLE}
    asked |= {f"voice of the {person} alone": Asked(voice=person) for person in PEOPLE}
    asked |= {f"face of the {face}, voice of the {voice}": Asked(face=face, voice=voice)
              for face, voice in permutations(PEOPLE)}  # fmt: skip
    asked["unseen prompt, face and voice"] = Asked(unseen=True)
    base = Part("", talks, 120, _FIRST_SEED + 9900)
    return [
        replace(base, name=name, group=f"persona: {name}", persona=who, seed=base.seed + 100 * number)
        for number, (name, who) in enumerate(asked.items())
        if talks
    ]


def variant_parts(talks: int, only: Sequence[str] = ()) -> list[Part]:
    """The same `talks` conversations played in different ways; the first is what the others are compared with.

    only: of these ways alone, by a part of their names.
    """
    base = Part("as served: window 16, 4 steps, float32", talks, 160, _FIRST_SEED + 6000)
    varied = [
        base,
        replace(base, name="1 solver step", steps=1),
        replace(base, name="2 solver steps", steps=2),
        replace(base, name="8 solver steps", steps=8),
        replace(base, name="retention: full", keep="full"),
        replace(base, name="retention: window 4 + 50", keep={"window": {"sink": 4, "recent": 50}}),
        replace(base, name="retention: window 8", keep={"window": {"sink": 0, "recent": 8}}),
        replace(
            base,
            name="retention: window 8, language 16",
            keep={"window_language": {"sink": 0, "recent": 8, "language_recent": 16}},
        ),
        replace(base, name="microphone 20 dB quieter", microphone=-20.0),
        replace(base, name="microphone 12 dB louder, clipped", microphone=12.0),
        replace(base, name="degraded: a third of the units late", way="degraded"),
        replace(base, name="PyTorch float32, no engines", way="torch"),
        replace(base, name="PyTorch bfloat16, as in GPU engines", way="torch", precision="bfloat16"),
        replace(base, name="PyTorch FP8, as in GPU engines", way="torch", precision="fp8"),
    ]
    wanted = [part for part in varied if not only or any(name in part.name for name in only)]
    return [replace(part, group=f"variant: {part.name}") for part in wanted]


def face_parts(talks: int) -> list[Part]:
    """Faces of which nobody wants anything, each with as many solver steps as its name says."""
    quiet = Part("", talks, 124, _FIRST_SEED + 4500, quiet=True)
    named = ((f"idle face, {steps} solver step{'s' if steps > 1 else ''}", steps) for steps in (1, 2, 4, 8))
    return [replace(quiet, name=name, group=name, steps=steps) for name, steps in named if talks]


def oracle_part(talks: int) -> Part:
    """Conversations short enough for one pass over all of their tokens."""
    return Part("oracle", talks, 96, _FIRST_SEED + 7000, group="oracle", way="oracle", batch=2)


def served_part(talks: int) -> Part:
    """What is played through a real tritonserver as well, by an agent that is shown whom to be."""
    who = Asked(face=PEOPLE[1], voice=PEOPLE[1])
    return Part("served", talks, 150, _FIRST_SEED + 8000, group="served", batch=4, persona=who)
