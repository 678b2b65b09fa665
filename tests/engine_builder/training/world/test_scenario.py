"""The simulated tutor: timing rules, determinism, and what is due when."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from engine_builder.training.world.conversation import NO_WORD, Studio
from engine_builder.training.world.scenario import HEARD, LISTEN, SPEAK, STOP_HEARD, Scenario
from engine_builder.training.world.speech.agent_voice import UNIT, agent_voice
from engine_builder.training.world.words import LANGUAGES, PEOPLE, Meaning, agent_words, answer, spoken

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed"),
]


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return Studio(tmp_path_factory.mktemp("voices"), "held_out", voices=2)


@pytest.fixture(scope="module")
def scenes(studio: Studio) -> list[Scenario]:
    return [studio.simulator.run(np.random.default_rng(seed), 120) for seed in range(12)]


def test_the_same_seed_is_the_same_conversation(studio: Studio) -> None:
    first, second = studio.conversation(7, 20, first_unit=9), studio.conversation(7, 20, first_unit=9)
    for name in ("user_pcm", "camera", "typed", "agent_pcm", "face", "state", "word", "heard"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert not np.array_equal(first.user_pcm, studio.conversation(8, 20).user_pcm)


def test_shapes_and_ranges(studio: Studio) -> None:
    c = studio.conversation(1, 30)
    assert c.user_pcm.shape == (30, UNIT)
    assert c.user_pcm.dtype == np.float32
    assert c.camera.shape == (30, 4, 64, 64, 3)
    assert c.camera.dtype == np.uint8
    assert c.agent_pcm.shape == (31, UNIT)
    assert c.face.shape == (31, 4, 64, 64, 3)
    assert set(c.state.tolist()) <= {LISTEN, SPEAK}
    assert not c.agent_pcm[1:][c.state == LISTEN][:, 320:].any(), "a listening agent is silent after the fade"
    assert (c.state[c.word != NO_WORD] == SPEAK).all()


def test_answers_start_in_the_first_unit_that_heard_the_end_of_the_word(scenes: list[Scenario]) -> None:
    checked = 0
    for scene in scenes:
        for reaction in scene.reactions:
            if reaction.action == "answer" and reaction.source == "speech":
                stops = [u.stop for u in scene.utterances if u.meaning == reaction.meaning]
                waits = [(reaction.unit + 1) * UNIT - stop for stop in stops]
                assert any(HEARD <= wait < HEARD + UNIT for wait in waits)
                checked += 1
    assert checked > 30


def test_an_agent_is_silent_within_two_units_of_an_interruption(scenes: list[Scenario]) -> None:
    stops = [(scene, r) for scene in scenes for r in scene.reactions if r.action == "stop"]
    assert len(stops) > 5
    for scene, reaction in stops:
        assert scene.state[reaction.unit] == LISTEN
        starts = [u.start for u in scene.utterances if u.meaning == reaction.meaning]
        assert any(STOP_HEARD <= (reaction.unit + 1) * UNIT - start < STOP_HEARD + UNIT for start in starts)


def test_only_words_stop_the_agent(scenes: list[Scenario]) -> None:
    murmurs = 0
    for scene in scenes:
        stops = {r.unit: r for r in scene.reactions if r.action == "stop"}
        assert all(r.meaning.kind != "backchannel" for r in stops.values())
        for unit in range(1, len(scene.state)):
            before, now = scene.playing[unit - 1], scene.playing[unit]
            if before is not None and now is None and unit not in stops:
                words = sum(w is not None for w in scene.starts[unit - 1 - before[1] : unit])
                assert words == len(before[0]), "a sentence that nobody interrupts is finished"
        for u in scene.utterances:
            unit = u.start // UNIT
            speaking = 0 < unit < len(scene.state) - 1 and scene.state[unit - 1] == scene.state[unit] == SPEAK
            murmurs += u.meaning.kind == "backchannel" and speaking
    assert murmurs > 3


def test_every_behaviour_occurs(scenes: list[Scenario]) -> None:
    reactions = [r for scene in scenes for r in scene.reactions]
    assert {r.source for r in reactions if r.action == "answer"} == {"speech", "text", "camera"}
    assert {r.action for r in reactions} == {"answer", "stop", "nod"}
    assert {scene.language for scene in scenes} == set(LANGUAGES)


def test_nine_is_followed_by_zero_in_both_languages() -> None:
    assert answer(Meaning("digit", 9), "en") == ("zero", "comes", "after", "nine")
    assert answer(Meaning("digit", 9), "de") == ("null", "kommt", "nach", "neun")
    with pytest.raises(ValueError, match="meaning: expected a digit"):
        spoken(Meaning("colour", 1), "en")


def test_agent_words_fill_whole_units_and_end_silent() -> None:
    """As many in every voice, since a scenario does not know which is to be heard."""
    for language in LANGUAGES:
        for word in agent_words(language):
            said = [agent_voice(person).word(language, word) for person in PEOPLE]
            assert len({units.shape for units in said}) == 1
            assert said[0].shape[1] == UNIT
            assert not any(units[-1, -320:].any() for units in said)


def test_voice_splits_share_no_timbre(tmp_path: Path) -> None:
    from engine_builder.training.world.speech.voices import user_voices

    train, held_out = user_voices("train", 240), user_voices("held_out", 48)
    assert not {v.timbre for v in train} & {v.timbre for v in held_out}
    with pytest.raises(ValueError, match="split: expected 'train' or 'held_out', got 'test'"):
        user_voices("test", 3)
