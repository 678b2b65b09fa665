"""The shipped weights: what they hear of voices and of real people, who they are, and where they look, in PyTorch;
`make eval` judges them at length."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from engine_builder.checkpoint import load_checkpoint
from engine_builder.training.judges.closed_loop import ClosedLoop
from engine_builder.training.judges.figures import Judge, Tally
from engine_builder.training.world.conversation import Studio
from engine_builder.training.world.personas import Persona
from engine_builder.training.world.scenario import DIGITS_ONLY, Simulator
from engine_builder.training.world.speech.cast import Cast
from engine_builder.training.world.speech.crowd import RecordingsMissing
from engine_builder.training.world.speech.people import DEFAULT, People
from engine_builder.training.world.speech.voices import VoiceBank, user_voices
from engine_builder.training.world.words import PEOPLE

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed"),
]
_TUTOR = Path(__file__).parents[3] / "checkpoints" / "tutor"
_JUDGE = Judge(lambda pcm, language, person: "")


def _people() -> People | None:
    try:
        return People.load(Path(os.environ.get("SPEECH", DEFAULT)))
    except RecordingsMissing:
        return None


def test_the_shipped_tutor_writes_and_answers_what_it_heard(tmp_path: Path) -> None:
    """A dozen digits in noise of every level, by people where SPEECH has them, else by held-out voices."""
    cast = Cast(VoiceBank.load(user_voices("held_out", 4), tmp_path), _people())
    studio = Studio(tmp_path, "held_out", cast=cast)
    studio.simulator = Simulator(cast, studio.agent, DIGITS_ONLY)
    talks = [studio.conversation(7_000_000 + i, 50, language="en") for i in range(4)]
    model = load_checkpoint(_TUTOR)
    tally = Tally()
    for talk, done in zip(talks, ClosedLoop(model, solver_steps=1).run(talks), strict=True):
        _JUDGE.conversation(talk.scenario, done, tally)
    assert tally.trials["answer_accuracy_text"] >= 8
    assert (tally.share("answer_accuracy_text") or 0.0) >= 0.75
    assert (tally.share("transcript_error_rate") or 0.0) <= 0.25


def test_the_shipped_tutor_looks_to_a_side_and_not_to_the_mean_of_both(tmp_path: Path) -> None:
    studio = Studio(tmp_path, "held_out", voices=1)
    talks = [studio.conversation(7_100_000 + i, 48, quiet=True) for i in range(3)]
    tally = Tally()
    for done in ClosedLoop(load_checkpoint(_TUTOR)).run(talks):
        _JUDGE.quiet(done, tally, stretch=48)
    assert tally.trials["idle_eyes_choose"] >= 100
    assert (tally.share("idle_eyes_choose") or 0.0) >= 0.95
    assert 0.1 <= (tally.share("idle_eyes_turn") or 0.0) <= 0.9


@pytest.mark.parametrize("way", ["told", "shown"])
def test_the_shipped_tutor_is_whom_it_is_asked_to_be(way: str, tmp_path: Path) -> None:
    studio, tally = Studio(tmp_path, "held_out", voices=2), Tally()
    studio.simulator = Simulator(studio.cast, studio.agent, DIGITS_ONLY)
    rng = np.random.default_rng(5)
    asked = [{"told": p} if way == "told" else {"face": p, "voice": p} for p in PEOPLE]
    talks = [
        studio.conversation(7_200_000 + i, 60, language="en", persona=Persona.of(rng, **who))
        for i, who in enumerate(asked)
    ]
    for talk, done in zip(talks, ClosedLoop(load_checkpoint(_TUTOR)).run(talks), strict=True):
        _JUDGE.conversation(talk.scenario, done, tally)
    assert tally.trials["persona_voice"] >= 6
    assert (tally.share("persona_voice") or 0.0) >= 0.9
    assert (tally.share("persona_face") or 0.0) >= 0.95
