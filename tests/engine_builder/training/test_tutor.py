"""Whoever trains a tutor gets one like the shipped one: everything besides the weights is the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engine_builder.checkpoint import read_defaults
from engine_builder.config import ModelConfig
from engine_builder.training.tutor import DEFAULTS, model_config

TUTOR = Path(__file__).parents[3] / "checkpoints" / "tutor"

pytestmark = pytest.mark.unit


def test_the_shipped_tutor_is_one_that_is_trained_from_chance() -> None:
    shipped, fresh = ModelConfig.load(TUTOR / "config.json"), model_config()
    assert replace(fresh, audio=shipped.audio) == shipped
    # Its ears grew while it was trained; a fresh one has them from the beginning.
    assert replace(fresh.audio, encoder_dilations=shipped.audio.encoder_dilations) == shipped.audio


def test_the_shipped_tutors_defaults_are_written_with_every_run() -> None:
    assert read_defaults(TUTOR) == DEFAULTS
