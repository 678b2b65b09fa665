"""The evaluation itself: it runs the real engines and runtime, and random weights get nothing right."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from engine_builder.tokenizer import word_ids, write_tiny_tokenizer
from engine_builder.training.conversation import Studio
from engine_builder.training.judges.figures import Judge, Tally, figures
from engine_builder.training.rehearsal import template_ear
from engine_builder.training.voices import Pcm
from tests.eval.report import TARGETS, misses
from tests.eval.stage import Stage

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed"),
]


@pytest.fixture(scope="module")
def random_engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines of the tiny preset with random weights."""
    from engine_builder.build import BuildOptions, build_engines
    from engine_builder.checkpoint import random_model, save_checkpoint
    from engine_builder.config import preset

    root = tmp_path_factory.mktemp("random")
    tokenizer = write_tiny_tokenizer(root / "tokenizer.json")
    save_checkpoint(random_model(preset("tiny"), seed=1), root / "checkpoint", tokenizer)
    build_engines(root / "checkpoint", root / "engines", BuildOptions(max_batch=2))
    return root / "engines"


def test_random_weights_fall_to_chance(random_engines: Path, tmp_path: Path) -> None:
    studio = Studio(tmp_path, "held_out", voices=2)
    ears = template_ear(studio.agent)

    def hear(pcm: Pcm, language: str) -> str:
        return ears[language].judge(pcm)

    judge, tally = Judge({token: word for word, token in word_ids().items()}, hear), Tally()
    talks = [studio.conversation(seed, 60) for seed in (1, 2)]
    with Stage(random_engines, sessions=2, units=60, steps=1) as stage:
        performances = stage.run(talks)
        for talk, done in zip(talks, performances, strict=True):
            assert done.pcm.shape == talk.user_pcm.shape
            assert done.frames.shape == talk.camera.shape
            judge.conversation(talk.scenario, done, tally)
    found = figures(tally)
    assert tally.trials["answer_accuracy_text"] >= 4
    accuracy = found["answer_accuracy_text"]
    assert accuracy is not None
    assert accuracy <= 0.25
    assert misses(found)


def test_targets_name_what_is_missed() -> None:
    good = {name: target for name, target, _ in TARGETS}
    assert misses(good) == []
    assert misses({**good, "av_sync_ms": 60.0}) == ["av_sync_ms: required <= 45.0, got 60.0"]
    assert misses({**good, "colour_accuracy": None}) == ["colour_accuracy: required >= 0.95, got None"]
