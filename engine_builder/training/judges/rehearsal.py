"""A quick closed-loop check of a checkpoint in PyTorch: held-out conversations, then the judges' figures."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from engine_builder.model.duplex import DuplexModel

from ..world.conversation import Studio
from ..world.scenario import DIGITS_ONLY
from ..world.speech.agent_voice import agent_voice
from ..world.speech.cast import Cast
from ..world.speech.people import People
from ..world.speech.voices import Pcm
from ..world.words import LANGUAGES, agent_words
from .closed_loop import ClosedLoop
from .dtw import DtwJudge
from .figures import Judge, Tally, figures

_FIRST_SEED = 5_000_000


@cache
def template_ear(person: str) -> dict[str, DtwJudge]:
    """The template judge of every language, for the voice of one person."""
    agent = agent_voice(person)
    return {
        language: DtwJudge({word: agent.word(language, word).reshape(-1) for word in agent_words(language)})
        for language in LANGUAGES
    }


def hear(pcm: Pcm, language: str, person: str) -> str:
    """The template judge's word."""
    return template_ear(person)[language].judge(pcm)


def rehearse(
    model: DuplexModel,
    cache: Path,
    conversations: int = 16,
    units: int = 150,
    quiet: int = 8,
    solver_steps: int | None = None,
    people: People | None = None,
) -> tuple[dict[str, float | None], Tally]:
    """Figures over `conversations` of `units` units and `quiet` silent or noisy ones. people: who say digits, all in
    English, instead of the held-out voices."""
    studio, language = Studio(cache, "held_out"), None
    if people is not None:
        cast = Cast(studio.cast.bank, people)
        studio, language = Studio(cache, "held_out", habits=DIGITS_ONLY, cast=cast), LANGUAGES[0]
    judge = Judge(hear)
    tally = Tally()
    loop = ClosedLoop(model, solver_steps=solver_steps)
    talks = [studio.conversation(_FIRST_SEED + i, units, language=language) for i in range(conversations)]
    for talk, done in zip(talks, loop.run(talks), strict=True):
        judge.conversation(talk.scenario, done, tally)
    if quiet:
        talks = [studio.conversation(_FIRST_SEED + 1000 + i, 124, quiet=True) for i in range(quiet)]
        for done in loop.run(talks):
            judge.quiet(done, tally)
    return figures(tally), tally
