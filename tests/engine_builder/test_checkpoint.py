"""Checkpoints: what is written comes back, and everything that does not fit is reported at once."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine_builder.__main__ import main
from engine_builder.checkpoint import INDEX, WEIGHTS, CheckpointError, load_checkpoint, random_model, save_checkpoint
from engine_builder.config import BackboneConfig, ModelConfig
from engine_builder.presets import preset

pytestmark = pytest.mark.unit

SMALL = ModelConfig(
    name="small",
    backbone=BackboneConfig(hidden_size=32, layers=2, heads=2, kv_heads=1, head_dim=16, intermediate_size=48),
)


def test_round_trip_and_seed(tmp_path):
    model = random_model(SMALL, seed=3)
    save_checkpoint(model, tmp_path)
    loaded = load_checkpoint(tmp_path)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0, atol=0)
    again, other = random_model(SMALL, seed=3).state_dict(), random_model(SMALL, seed=4).state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(again[name], model.state_dict()[name])
    assert not torch.equal(other[name], model.state_dict()[name])


def test_sharded_checkpoint_loads_like_a_single_file(tmp_path):
    model = random_model(SMALL, seed=0)
    save_checkpoint(model, tmp_path, shard_bytes=300_000)
    assert (tmp_path / INDEX).exists()
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    loaded = load_checkpoint(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    save_checkpoint(model, tmp_path)  # writing again leaves no shard behind
    assert [p.name for p in tmp_path.glob("*.safetensors*")] == [WEIGHTS]


def test_every_misfit_is_reported_at_once(tmp_path):
    save_checkpoint(random_model(SMALL, seed=0), tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    del tensors["video_in.bias"]
    tensors["surplus"] = torch.zeros(2)
    tensors["audio_in.bias"] = torch.zeros(5)
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], float("nan"))
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path)
    for part in (
        "4 tensors",
        "missing video_in.bias [32]",
        "extra surplus [2]",
        "misshapen audio_in.bias: expected [32], got [5]",
        "not finite model.norm.weight",
    ):
        assert part in str(error.value)


def test_missing_weights_are_named_beside_what_is_there(tmp_path):
    SMALL.save(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"no model\.safetensors; expected .*found config\.json"):
        load_checkpoint(tmp_path)


def test_cli_init_writes_a_loadable_checkpoint(tmp_path, capsys):
    assert main(["init", "--preset", "tiny", "--seed", "1", str(tmp_path / "c")]) == 0
    assert "random weights (seed 1)" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "c").config.name == "tiny"
    assert {p.name for p in (tmp_path / "c").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "WEIGHTS",
    }


def test_cli_errors_are_one_message(tmp_path, capsys):
    assert main(["build", str(tmp_path / "absent"), str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert message.strip().startswith("error: ")
    assert "config.json" in message
    assert not (tmp_path / "out").exists()


def test_weights_of_others_are_neither_replaced_nor_removed(tmp_path, capsys):
    """A shard was missing, the error advised `init` on the same folder, and that removed the shards that were there."""
    shard = tmp_path / "model-00001-of-00002.safetensors"
    save_file({"a": torch.zeros(1)}, shard)
    before = shard.read_bytes()
    (tmp_path / INDEX).write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "gone.safetensors"}}')
    preset("tiny").save(tmp_path / "config.json")
    with pytest.raises(
        CheckpointError, match=r"no gone\.safetensors; expected .*found config\.json, model-00001"
    ) as error:
        load_checkpoint(tmp_path)
    assert "init" not in str(error.value)
    assert main(["init", str(tmp_path)]) == 1
    assert "found other weights: not replaced" in capsys.readouterr().err
    assert shard.read_bytes() == before
    ours = tmp_path / "ours"
    assert main(["init", str(ours)]) == 0
    assert main(["init", str(ours), "--seed", "1"]) == 0


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (WEIGHTS, LFS, "not a safetensors file.*Git LFS pointer: `git lfs pull`"),
        (WEIGHTS, b"\x10\0\0\0\0\0\0\0{}", "not a safetensors file, or cut short"),
        (INDEX, LFS, "not a list of shards.*Git LFS pointer"),
        (INDEX, b'{"weight_map": {"a": "../x"}}', "not a list of shards"),
        (INDEX, b"[" * 100_000, "not a list of shards"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path, name, text, message):
    preset("tiny").save(tmp_path / "config.json")
    (tmp_path / name).write_bytes(text)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)
