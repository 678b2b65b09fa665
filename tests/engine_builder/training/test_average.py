"""The mean of checkpoints: each counts by its share, shorter ears stay what they are, other shapes are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine_builder.checkpoint import load_checkpoint, read_defaults, save_checkpoint
from engine_builder.config import BackboneConfig, ConfigError
from engine_builder.model.duplex import DuplexModel, init_weights
from engine_builder.presets import preset
from engine_builder.tokenizer import write_tiny_tokenizer
from engine_builder.training.__main__ import main
from engine_builder.training.average import average
from engine_builder.training.learn.ears import with_longer_ears
from engine_builder.training.tutor import DEFAULTS

pytestmark = pytest.mark.unit


def _model(seed: int, hidden_size: int = 64) -> DuplexModel:
    small = BackboneConfig(hidden_size=hidden_size, layers=1, heads=2, kv_heads=1, head_dim=32, intermediate_size=96)
    model = DuplexModel(replace(preset("tiny"), backbone=small))
    init_weights(model, seed)
    return model


def test_each_counts_by_its_share() -> None:
    first, second = _model(1), _model(2)
    mean = average([first, second], [3.0, 1.0]).state_dict()
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(mean[name], 0.75 * tensor + 0.25 * second.state_dict()[name])


def test_shorter_ears_get_the_rest_of_the_longest() -> None:
    first, longer = _model(1), with_longer_ears(_model(2), [2])
    mean = average([first, longer], [1.0, 1.0])
    assert mean.config == longer.config
    name = f"audio_encoder.convs.{len(first.config.audio.encoder_dilations)}.bias"
    torch.nn.init.ones_(longer.get_parameter(name))
    torch.testing.assert_close(average([first, longer], [1.0, 3.0]).get_parameter(name), torch.full((128,), 0.75))


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ConfigError, match="one shape"):
        average([_model(1), _model(2, hidden_size=32)], [1.0, 1.0])


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = _model(1)
    tokenizer = write_tiny_tokenizer(tmp_path / "tokenizer.json", model.config.language)
    for name in "ab":
        save_checkpoint(model, tmp_path / name, tokenizer, torch.float16, defaults=DEFAULTS)
    checkpoints = [str(tmp_path / name) for name in "ab"]
    assert main(["average", str(tmp_path / "mean"), *checkpoints]) == 0
    torch.testing.assert_close(
        load_checkpoint(tmp_path / "mean").state_dict(), load_checkpoint(tmp_path / "a").state_dict()
    )
    assert read_defaults(tmp_path / "mean") == DEFAULTS
    with pytest.raises(SystemExit):
        main(["average", str(tmp_path / "mean"), *checkpoints, "--shares", "1"])
    assert "--shares: expected 2, one a checkpoint, got 1" in capsys.readouterr().err
