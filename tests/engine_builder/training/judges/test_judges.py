"""The judges' ceiling on clean audio, and what the figures make of a perfect and of a mute agent."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from engine_builder.tokenizer import word_ids
from engine_builder.training.judges import dtw
from engine_builder.training.judges.closed_loop import Performance
from engine_builder.training.judges.dtw import DtwJudge
from engine_builder.training.judges.figures import Judge, Tally, figures
from engine_builder.training.judges.rehearsal import hear, template_ear
from engine_builder.training.judges.sync import sync
from engine_builder.training.world.conversation import NO_WORD, Conversation, Studio
from engine_builder.training.world.personas import Persona
from engine_builder.training.world.scenario import LISTEN, Habits, Simulator
from engine_builder.training.world.speech.agent_voice import agent_voice
from engine_builder.training.world.words import LANGUAGES, PEOPLE, agent_words

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed"),
]


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return Studio(tmp_path_factory.mktemp("voices"), "held_out", voices=2)


def perfect(c: Conversation) -> Performance:
    """What the agent should have done, its voice one codec hop late as the codec makes it; notes wherever it may."""
    pcm = np.concatenate([np.zeros(320, dtype=np.float32), c.agent_pcm[1:].reshape(-1)])[:-320]
    words = [[int(token) for token in pair if token != NO_WORD] for pair in zip(c.heard, c.word, strict=True)]
    for unit, notes in enumerate(c.notes):
        words[unit] += [int(token) for token in notes if token != NO_WORD and c.state[unit] == LISTEN]
    return Performance(c.state, words, pcm.reshape(-1, 2560), c.face[1:])


def test_the_template_judge_knows_every_clean_word() -> None:
    for person in PEOPLE:
        for language, judge in template_ear(person).items():
            for word in agent_words(language):
                assert judge.judge(agent_voice(person).word(language, word).reshape(-1)) == word
    with pytest.raises(ValueError, match="references"):
        DtwJudge({})


def test_the_distance_is_that_of_the_cheapest_path() -> None:
    """Against every path, on sequences short enough to try them all."""
    rng = np.random.default_rng(3)
    words, lengths, heard = rng.normal(size=(2, 4, 3)), np.array([4, 3]), rng.normal(size=(3, 3))

    def cheapest(i: int, j: int, word: int) -> float:
        cost = float(np.linalg.norm(heard[i] - words[word, j]))
        ways = [cheapest(i - 1, j - 1, word) + 2 * cost] if i and j else []
        ways += [cheapest(i - 1, j, word) + cost] if i else []
        ways += [cheapest(i, j - 1, word) + cost] if j else []
        return min(ways, default=2 * cost)

    found = dtw.distances(heard, words, lengths)
    expected = [cheapest(2, n - 1, w) / (3 + n) for w, n in enumerate(lengths)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_silence_is_no_word() -> None:
    judge = template_ear(PEOPLE[0])["en"]
    assert judge.judge(np.zeros(2560, dtype=np.float32)) == ""


def test_eyes_choose_a_side_and_the_mean_of_both_is_none(studio: Studio) -> None:
    talks = [studio.conversation(seed, 124, quiet=True) for seed in range(3)]
    judge, drawn, mean = Judge(lambda pcm, language, person: ""), Tally(), Tally()
    for talk in talks:
        done = perfect(talk)
        judge.quiet(done, drawn)
        mirrored = done.frames[..., ::-1, :]  # what is drawn is the same on both sides but for the eyes
        judge.quiet(replace(done, frames=((done.frames.astype(np.uint16) + mirrored) // 2).astype(np.uint8)), mean)
    found = figures(drawn)
    assert found["idle_eyes_choose"] == 1.0
    assert found["idle_eyes_turn"] is not None
    assert 0.3 < found["idle_eyes_turn"] < 0.7
    assert figures(mean)["idle_eyes_choose"] == 0.0


def test_a_perfect_agent_gets_perfect_figures_and_a_mute_one_none(studio: Studio) -> None:
    judge = Judge(hear)
    best, mute = Tally(), Tally()
    for seed in range(4):
        talk = studio.conversation(seed, 90, persona=Persona.of(np.random.default_rng(seed), PEOPLE[seed % 2]))
        done = perfect(talk)
        judge.conversation(talk.scenario, done, best)
        silent = Performance(np.zeros_like(done.state), [[] for _ in done.words], 0 * done.pcm, done.frames)
        judge.conversation(talk.scenario, silent, mute)
        judge.quiet(done, best)
        judge.quiet(silent, mute)
    found = figures(best)
    assert found["answer_accuracy_text"] == found["answer_accuracy_audio_judge"] == 1.0
    assert found["audio_agrees_with_own_text"] == found["sentence_accuracy_text"] == 1.0
    delay, stop = found["response_delay_units_p95"], found["barge_in_stop_units_p95"]
    assert delay is not None
    assert delay < 1.7
    assert stop is not None
    assert stop < 1.7
    assert found["transcript_error_rate"] == 0.0
    assert found["persona_face"] == found["persona_voice"] == 1.0
    assert found["av_sync_ms"] is not None
    assert found["av_sync_ms"] <= 20
    assert found["false_start_rate"] == 1.0
    assert found["idle_face_blinks"] == 1.0
    none = figures(mute)
    assert none["av_sync_ms"] is None
    assert found["answer_accuracy_audio_with_misses"] == 1.0
    assert none["answer_accuracy_audio_with_misses"] == 0.0
    assert none["transcript_error_rate"] == 1.0
    assert none["answer_accuracy_text"] == none["take_over_rate"] == none["false_start_rate"] == 0.0
    assert none["barge_in_stop_units_p95"] is None


def test_somebody_else_has_neither_the_face_nor_the_voice(studio: Studio) -> None:
    asked, other = (studio.conversation(2, 90, persona=Persona(person, person)) for person in PEOPLE)
    tally = Tally()
    Judge(hear).conversation(asked.scenario, perfect(other), tally)
    assert tally.trials["persona_voice"] > 3
    assert figures(tally)["persona_face"] == figures(tally)["persona_voice"] == 0.0


def test_questions_for_what_was_said_are_counted_apart(studio: Studio) -> None:
    judge, best, mute = Judge(lambda pcm, language, person: ""), Tally(), Tally()
    asking = Simulator(studio.cast, studio.agent, Habits(again=0.3, recall=0.3))
    for seed in range(4):
        scene = asking.run(np.random.default_rng(seed), 90)
        silence = np.zeros((90, 2560), dtype=np.float32), np.zeros((90, 4, 64, 64, 3), dtype=np.uint8)
        said = [[] if word is None else [word_ids()[word]] for word in scene.starts]
        judge.conversation(scene, Performance(np.array(scene.state), said, *silence), best)
        judge.conversation(scene, Performance(np.zeros(90, dtype=np.int64), [[]] * 90, *silence), mute)
    assert figures(best)["again_accuracy"] == figures(best)["recall_accuracy"] == 1.0
    assert figures(mute)["again_accuracy"] == figures(mute)["recall_accuracy"] == 0.0
    assert sum(best.trials[f"{kind}_answered"] for kind in ("again", "recall", "digit")) < best.trials["take_over_rate"]


def test_sync_finds_a_shifted_voice(studio: Studio) -> None:
    done = perfect(studio.conversation(2, 80))
    pcm = done.pcm.reshape(-1)
    late = np.concatenate([np.zeros(1600, dtype=np.float32), pcm])[: pcm.size]
    frames = done.frames.reshape(-1, 64, 64, 3)
    here, there = sync(frames, pcm)[0], sync(frames, late)[0]
    assert 90 <= there - here <= 110


def test_babble_is_not_interrupted_and_not_in_step(studio: Studio) -> None:
    """An agent that speaks all the time, wrong words to a face that does not move, has no good figure."""
    token = word_ids()["geschehen"]
    judge = Judge(lambda pcm, language, person: "")
    tally = Tally()
    for seed in range(4):
        talk = studio.conversation(seed, 90)
        pcm = np.random.default_rng(seed).normal(0, 0.1, talk.user_pcm.shape).astype(np.float32)
        frames = np.zeros_like(talk.camera)
        judge.conversation(talk.scenario, Performance(np.ones(90, np.int64), [[token]] * 90, pcm, frames), tally)
        judge.quiet(Performance(np.ones(90, np.int64), [[token]] * 90, pcm, frames), tally)
    found = figures(tally)
    assert found["take_over_rate"] == 1.0
    assert found["answer_accuracy_text"] == found["idle_face_blinks"] == 0.0
    assert found["response_delay_units_p50"] is None
    assert found["barge_in_stop_units_p95"] is None
    assert found["backchannel_stop_rate"] is None
    assert found["av_sync_ms"] is not None
    assert found["av_sync_ms"] > 45


def test_languages_have_judges(studio: Studio) -> None:
    assert set(template_ear(PEOPLE[0])) == set(LANGUAGES)
