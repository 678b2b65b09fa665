"""What the agent keeps for later, when it writes that down, and what it answers with it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_builder.tokenizer import TINY_NOTES
from engine_builder.training.world.conversation import NO_WORD, Studio
from engine_builder.training.world.notes import EVERY, Notes, due
from engine_builder.training.world.scenario import Habits, Simulator
from engine_builder.training.world.words import Meaning, answer

SEVEN, RED, HELLO = Meaning("digit", 7), Meaning("colour", 0), Meaning("greeting")
AGAIN, RECALL = Meaning("again"), Meaning("recall")


_UNITS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80)  # speaks, has room


@given(_UNITS, st.integers(0, 40), st.integers(0, 90))
def test_notes_are_written_where_there_is_room_and_never_lost_sight_of(
    talk: list[tuple[bool, bool]], first: int, cut: int
) -> None:
    speaking, free = [speaks for speaks, _ in talk], [room for _, room in talk]
    known = [unit >= first for unit in range(len(talk))]
    last, spoke = -EVERY, False
    for unit, write in enumerate(due(speaking, free, known, cut)):
        possible = free[unit] and known[unit]
        assert possible or not write
        ended = spoke and not speaking[unit]
        assert write or not possible or (unit - last < EVERY and not ended and not last < cut <= unit)
        last, spoke = (unit if write else last), speaking[unit] or (spoke and not write)


def test_a_long_answer_has_notes_between_its_words() -> None:
    speaking = [False, False, *[True] * 9, False]
    free = [True, True, *[False] * 4, *[True] * 6]
    written = due(speaking, free, [True] * 12)
    assert [unit for unit, write in enumerate(written) if write] == [0, 6, 11]


def test_what_is_known_has_a_token_each() -> None:
    rng = np.random.default_rng(1)
    drawn = [Notes.drawn(rng) for _ in range(200)]
    assert {text for notes in drawn for text in notes.texts()} == set(TINY_NOTES)
    assert Notes().texts() == ()
    assert Notes(RED).texts() == ("colour red",)


@pytest.mark.parametrize(
    ("talk", "again", "recall"),
    [
        ([], "say", "say"),
        ([SEVEN], "eight", "seven"),
        ([SEVEN, AGAIN, RECALL], "eight", "seven"),
        ([SEVEN, RED], "red", "seven"),
        ([RED], "red", "say"),
        ([Meaning("digit", 2), HELLO, SEVEN, HELLO], "hello", "seven"),
    ],
)
def test_what_was_answered_and_said_last_is_known_later(talk: list[Meaning], again: str, recall: str) -> None:
    notes = Notes()
    for meaning in talk:
        notes = notes.after(meaning)
    assert answer(notes.meant(AGAIN), "en")[0] == again
    assert answer(notes.meant(RECALL), "en")[0] == recall


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_a_question_after_a_while_is_answered_with_what_was_said(tmp_path: Path) -> None:
    studio = Studio(tmp_path, "held_out", voices=2)
    told = Habits(digit=1.0, social=0.0, typed=0.0, card=0.0, murmur=0.0, idle=0.0, barge_in=0.0, backchannel=0.0)
    nothing = replace(told, digit=0.0, idle=1.0)
    asking = replace(told, digit=0.0, again=0.5, recall=0.5)
    studio.simulator = Simulator(studio.cast, studio.agent, told, {20: nothing, 80: asking})
    kinds = set()
    for seed in range(4):
        talk = studio.conversation(seed, 140, language="en")
        digits = [r for r in talk.scenario.reactions if r.meaning.kind == "digit"]
        asked = [r for r in talk.scenario.reactions if r.action == "answer" and r.meaning.kind != "digit"]
        assert digits
        assert all(r.unit >= 80 for r in asked)
        for reaction in asked:
            last = digits[-1].meaning
            expected = digits[-1].words if reaction.meaning == AGAIN else answer(Meaning("recall", last.index), "en")
            assert reaction.words == expected
            kinds.add(reaction.meaning.kind)
        assert (talk.notes[digits[0].unit] != NO_WORD).all()
        assert (talk.notes[: digits[0].unit] == NO_WORD).all()
    assert kinds == {"again", "recall"}
