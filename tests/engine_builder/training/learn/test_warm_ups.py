"""The encoders' warm-ups: the windows and rooms are what they say, and a few steps teach something."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine_builder.config import BackboneConfig
from engine_builder.model.duplex import DuplexModel, init_weights
from engine_builder.presets import preset
from engine_builder.training.learn.ears import MURMUR, NOTHING, UNITS, open_ears, windows, with_longer_ears
from engine_builder.training.learn.eyes import open_eyes
from engine_builder.training.world.conversation import Studio
from engine_builder.training.world.speech.agent_voice import UNIT
from engine_builder.training.world.speech.cast import Cast
from engine_builder.training.world.speech.people import People
from engine_builder.training.world.words import DIGITS

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    if shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed")
    return Studio(tmp_path_factory.mktemp("voices"), "held_out", voices=1)


def _model() -> DuplexModel:
    small = BackboneConfig(hidden_size=64, layers=1, heads=2, kv_heads=1, head_dim=32, intermediate_size=96)
    model = DuplexModel(replace(preset("tiny"), backbone=small))
    init_weights(model, 0)
    return model


def test_windows_hold_what_their_classes_say(studio: Studio) -> None:
    drawn = windows(studio, np.random.default_rng(1), 80)
    assert drawn.pcm.shape == (80, UNITS * UNIT)
    assert drawn.pcm.abs().max() <= 1.0
    words, onsets = drawn.classes[: drawn.whole], drawn.classes[drawn.whole :]
    assert {NOTHING, MURMUR} < set(words.tolist())
    assert set(onsets.tolist()) == {NOTHING, MURMUR, 2}
    again = windows(studio, np.random.default_rng(1), 80)
    torch.testing.assert_close(again.pcm, drawn.pcm)


def test_people_are_heard_saying_what_they_were_recorded_with(studio: Studio) -> None:
    bank = studio.cast.bank
    somebody = People({"her": [[bank.word(0, "en", word)] for word in DIGITS["en"]]})
    peoples = Studio(Path(), "held_out", cast=Cast(bank, somebody))
    drawn = windows(peoples, np.random.default_rng(1), 200)
    words = set(drawn.classes[: drawn.whole].tolist()) - {NOTHING, MURMUR}
    assert words == set(range(2, 2 + len(DIGITS["en"])))


def test_ears_open(studio: Studio) -> None:
    """More than chance would give in 128 windows of each kind once in 30,000 times: by four standard deviations."""
    words, onsets = open_ears(_model(), studio, seed=3, steps=60, batch=24)
    assert words > _lucky(0.2, 128)  # always saying that it was a murmur
    assert onsets > _lucky(0.65, 128)  # always saying that it is speech


def test_longer_ears_begin_as_the_same_function_and_stay_near_it(studio: Studio) -> None:
    model = _model()
    longer = with_longer_ears(model, [2, 4])
    pcm = windows(studio, np.random.default_rng(1), 8).pcm

    def heard(model: DuplexModel) -> torch.Tensor:
        encoder = model.audio_encoder
        with torch.no_grad():
            return encoder(pcm, torch.zeros(len(pcm), encoder.state_size))[0]

    before = heard(model)
    assert longer.config.audio.encoder_dilations == (*model.config.audio.encoder_dilations, 2, 4)
    torch.testing.assert_close(heard(longer), before, rtol=0, atol=0)
    open_ears(longer, studio, seed=3, steps=20, batch=24, anchored=True)
    after = heard(longer)
    assert not torch.equal(after, before)
    free = with_longer_ears(model, [2, 4])
    open_ears(free, studio, seed=3, steps=20, batch=24)
    assert (after - before).square().mean() < 0.5 * (heard(free) - before).square().mean()


def test_eyes_open() -> None:
    assert open_eyes(_model(), seed=3, steps=200, batch=8) > _lucky(0.3, 256)  # always saying that there is no card


def _lucky(share: float, trials: int) -> float:
    return share + 4 * (share * (1 - share) / trials) ** 0.5
