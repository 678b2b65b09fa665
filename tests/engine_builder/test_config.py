"""Sizes: presets have the papers' geometry, bad sizes are refused by name, JSON goes round."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from engine_builder.config import AudioConfig, ConfigError, ModelConfig, SolverConfig
from engine_builder.layout import UnitLayout, rope_tables
from engine_builder.presets import PRESETS, preset

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_round_trip_through_json(name, tmp_path):
    config = preset(name)
    config.save(tmp_path / "config.json")
    assert ModelConfig.load(tmp_path / "config.json") == config
    assert ModelConfig.load(tmp_path / "config.json").digest() == config.digest()


def test_presets_have_the_papers_token_counts():
    assert preset("v0.1-8b").video.tokens == 252
    assert preset("v0.2-8b").video.tokens == 920
    assert preset("tiny").audio.unit_samples == 2560
    assert preset("v0.1-8b").audio.unit_samples == 3840


def test_presets_have_codecs_that_exist():
    """Mimi gives two latents a unit; a latent frame of the Wan VAE is a unit, whichever decoder shows it."""
    for name in PRESETS.keys() - {"tiny"}:
        audio, video = preset(name).audio, preset(name).video
        assert (audio.codec, audio.sample_rate, audio.tokens, audio.latent_dim) == ("mimi-vae", 24_000, 2, 32)
        assert (video.codec, video.latent_dim) == ("wan21" if name.endswith("-wan") else "taehv", 64)
        assert preset(name).latent_tokens in (252 + 2, 920 + 2)


@pytest.mark.parametrize("name", list(PRESETS))
def test_layout_covers_a_unit_without_gaps(name):
    config = preset(name)
    layout = UnitLayout.of(config)
    assert layout.span == config.unit_positions
    assert layout.slot_offset == config.block_tokens
    block = layout.block_positions(origin=7, unit=3)
    assert block[0] == 7 + 3 * layout.span
    assert layout.slot_position(7, 3, 0) == block[-1] + 1
    assert layout.slot_position(7, 3, layout.slots - 1) + 1 == layout.block_positions(7, 4)[0]
    # Noisy tokens stand where their clean latents will stand.
    np.testing.assert_array_equal(layout.noisy_positions(7, 3), layout.block_positions(7, 4)[: layout.latents])
    assert len(layout.committed_tokens(text_count=0)) == layout.slot_offset - layout.text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"audio": {"sample_rate": 16_001}}, "audio.sample_rate: expected a multiple of 50 Hz, got 16001"),
        ({"audio": {"tokens": 3}}, "audio.tokens: expected a divisor of 8, got 3"),
        ({"video": {"height": 65}}, "video.height: expected a multiple of the stride 32, got 65"),
        ({"backbone": {"kv_heads": 3}}, "backbone.kv_heads: expected a divisor of heads (4), got 3"),
        ({"language": {"eou_id": 1}}, "language special ids"),
        ({"solver": {"steps": 0}}, "solver.steps: expected 1 to max_steps (16), got 0"),
        ({"solver": {"steps": "4"}}, "config.solver.steps: expected int, got str ('4')"),
        ({"video": {"perceive_grid": 3}}, "config.video.perceive_grid: expected array, got int (3)"),
        ({"video": {"perceive_grid": [1, 1, 1]}}, "config.video.perceive_grid: expected array of length 2, got 3"),
        ({"backbone": {"rms_eps": 0}}, "backbone.rms_eps: expected > 0 and < 2^31, got 0"),
        ({"backbone": {"layers": True}}, "config.backbone.layers: expected int, got bool"),
        ({"audio": {"colour": 1}}, "config.audio: unknown fields ['colour']"),
        ({"audio": {"codec": "opus"}}, "audio.codec: expected one of mdct, mimi-vae, got 'opus'"),
        ({"audio": {"codec": "mimi-vae"}}, "audio.sample_rate: expected 24000 with mimi-vae, got 16000"),
        ({"video": {"codec": "taehv", "stride": 4}}, "video.stride: expected a multiple of 8 with taehv, got 4"),
        ({"video": {"codec": "wan21"}}, "video.latent_dim: expected 256 with wan21, got 64"),
        ({"video": {"perceive": "eyes"}}, "video.perceive: expected one of conv, codec, got 'eyes'"),
        (
            {"video": {"perceive": "codec", "perceive_grid": [4, 1]}},
            "video.perceive_grid: expected at most the latents",
        ),
        ({"audio": {"perceive": "codec", "perceive_tokens": 4}}, "audio.perceive_tokens: expected 2 (one a latent)"),
    ],
)
def test_bad_sizes_are_named(data, message):
    whole = preset("tiny").to_dict()
    for part, values in data.items():
        whole[part].update(values)
    with pytest.raises(ConfigError) as error:
        ModelConfig.from_dict(whole)
    assert message in str(error.value)


def test_unreadable_files_say_what_was_expected(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        ModelConfig.load(tmp_path / "config.json")
    for damaged in (b"{", b"\xff\xfe", b"[" * 100_000, b"version https://git-lfs.github.com/spec/v1\n"):
        (tmp_path / "config.json").write_bytes(damaged)
        with pytest.raises(ConfigError, match="not valid JSON"):
            ModelConfig.load(tmp_path / "config.json")
    data = preset("tiny").to_dict()
    del data["audio"]["tokens"]
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=r"missing fields \['tokens'\]"):
        ModelConfig.load(tmp_path / "config.json")


def test_configs_without_codec_fields_mean_the_first_codecs():
    data = preset("tiny").to_dict()
    for stream, name in itertools.product(("audio", "video"), ("codec", "codec_channels", "perceive")):
        del data[stream][name]
    config = ModelConfig.from_dict(data)
    assert config == preset("tiny")
    assert (config.audio.codec, config.video.codec, config.audio.perceive) == ("mdct", "patch", "conv")


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"tiny, v0\.1-0\.6b"):
        preset("huge")


def test_digest_depends_on_sizes():
    config = preset("tiny")
    assert replace(config, audio=AudioConfig(encoder_dilations=(1, 1))).digest() != config.digest()


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_solver_schedule_runs_from_one_to_zero(shift):
    taus = SolverConfig(steps=4, shift=shift).taus()
    assert taus[0] == 1.0
    assert taus[-1] == 0.0
    assert all(a > b for a, b in itertools.pairwise(taus))
    with pytest.raises(ConfigError, match="solver steps"):
        SolverConfig().taus(17)


def test_rope_is_exact_at_a_million():
    backbone = preset("v0.1-8b").backbone
    near, far = rope_tables(backbone, [5]), rope_tables(backbone, [0, 1_000_000, 1_000_005])
    # cos(a - b) from tables five positions apart equals the table of five, an hour or a day in.
    cos = far[0][1] * far[0][2] + far[1][1] * far[1][2]
    np.testing.assert_allclose(cos, near[0][0], atol=2e-7)


def test_a_number_of_encoder_layers_of_before_means_so_many_plain_convolutions():
    data = preset("tiny").to_dict()
    del data["audio"]["encoder_dilations"]
    data["audio"]["encoder_layers"] = 3
    assert ModelConfig.from_dict(data).audio.encoder_dilations == (1, 1, 1)


def test_a_config_of_before_chooses_its_states_without_bias():
    data = preset("tiny").to_dict()
    del data["language"]["state_bias"]
    assert ModelConfig.from_dict(data) == preset("tiny")


@pytest.mark.parametrize("bias", [(1.0,), (0.0, float("nan")), (0.0, float("-inf")), (0.0, 0.0, 0.0)])
def test_a_bias_is_a_number_for_every_state(bias: tuple[float, ...]):
    config = preset("tiny")
    language = replace(config.language, state_bias=bias)
    with pytest.raises(ConfigError, match=r"language\.state_bias: expected nothing, or 2 finite numbers"):
        replace(config, language=language)
