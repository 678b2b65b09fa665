"""The judges' ceiling on clean audio, and what the figures make of a perfect and of a mute agent."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from engine_builder.tokenizer import word_ids
from engine_builder.training.agent_voice import AgentVoice
from engine_builder.training.closed_loop import Performance
from engine_builder.training.conversation import NO_WORD, Conversation, Studio
from engine_builder.training.judges.dtw import DtwJudge
from engine_builder.training.judges.figures import Judge, Tally, figures
from engine_builder.training.judges.recogniser import Recogniser
from engine_builder.training.judges.sync import sync
from engine_builder.training.rehearsal import template_ear
from engine_builder.training.voices import Pcm
from engine_builder.training.words import COLOURS, DIGITS, LANGUAGES, agent_words

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed"),
]


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return Studio(tmp_path_factory.mktemp("voices"), "held_out", voices=2)


def perfect(c: Conversation) -> Performance:
    """What the agent should have done, its voice one codec hop late as the codec makes it."""
    pcm = np.concatenate([np.zeros(320, dtype=np.float32), c.agent_pcm[1:].reshape(-1)])[:-320]
    words = [[int(w)] if w != NO_WORD else [] for w in c.word]
    return Performance(c.state, words, pcm.reshape(-1, 2560), c.face[1:])


def test_the_template_judge_knows_every_clean_word() -> None:
    voice = AgentVoice()
    for language, judge in template_ear(voice).items():
        for word in agent_words(language):
            assert judge.judge(voice.word(language, word).reshape(-1)) == word
    with pytest.raises(ValueError, match="references"):
        DtwJudge({})


def test_the_recogniser_knows_every_clean_answer() -> None:
    pytest.importorskip("pocketsphinx")
    voice, judge = AgentVoice(), Recogniser(agent_words("en"))
    for word in (*DIGITS["en"], *COLOURS["en"]):
        assert judge.judge(voice.word("en", word).reshape(-1)) == word


def test_silence_is_no_word() -> None:
    voice = AgentVoice()
    judge = template_ear(voice)["en"]
    assert judge.judge(np.zeros(2560, dtype=np.float32)) == ""


def test_a_perfect_agent_gets_perfect_figures_and_a_mute_one_none(studio: Studio) -> None:
    ears = template_ear(studio.agent)

    def hear(pcm: Pcm, language: str) -> str:
        return ears[language].judge(pcm)

    judge = Judge({token: word for word, token in word_ids().items()}, hear)
    best, mute = Tally(), Tally()
    for seed in range(4):
        talk = studio.conversation(seed, 90)
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
    assert found["av_sync_ms"] is not None
    assert found["av_sync_ms"] <= 20
    assert found["false_start_rate"] == 1.0
    none = figures(mute)
    assert none["answer_accuracy_text"] == none["take_over_rate"] == none["false_start_rate"] == 0.0
    assert none["barge_in_stop_units_p95"] is None


def test_sync_finds_a_shifted_voice(studio: Studio) -> None:
    done = perfect(studio.conversation(2, 80))
    pcm = done.pcm.reshape(-1)
    late = np.concatenate([np.zeros(1600, dtype=np.float32), pcm])[: pcm.size]
    frames = done.frames.reshape(-1, 64, 64, 3)
    here, there = sync(frames, pcm)[0], sync(frames, late)[0]
    assert 90 <= there - here <= 110


def test_languages_have_judges(studio: Studio) -> None:
    assert set(template_ear(studio.agent)) == set(LANGUAGES)
