"""The backbone is Qwen3: same weights, same tokens, same logits as transformers' own model."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from engine_builder.checkpoint import CheckpointError
from engine_builder.cli import main
from engine_builder.importers.qwen3 import import_qwen3
from engine_builder.layout import rope_tables
from engine_builder.presets import preset
from engine_builder.tokenizer import write_tiny_tokenizer

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def hf(request, tmp_path_factory):
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=600,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=request.param,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    model = Qwen3ForCausalLM(config).eval()
    directory = tmp_path_factory.mktemp("hf")
    model.save_pretrained(directory)
    write_tiny_tokenizer(directory / "tokenizer.json")
    return model, directory


def test_logits_equal_transformers(hf):
    model, directory = hf
    ours, _ = import_qwen3(directory, preset("tiny"), seed=0)
    ids = torch.randint(0, 600, (2, 19), generator=torch.Generator().manual_seed(1))
    cos, sin = (torch.from_numpy(t).expand(2, -1, -1) for t in rope_tables(ours.config.backbone, range(19)))
    causal = torch.ones(19, 19, dtype=torch.bool).tril().expand(2, -1, -1)
    with torch.no_grad():
        hidden, _, _ = ours.model(ours.model.embed_tokens(ids), cos, sin, causal)
        torch.testing.assert_close(ours.logits(hidden), model(ids).logits, atol=1e-4, rtol=1e-4)


def test_import_command_writes_a_checkpoint(hf, tmp_path):
    _, directory = hf
    assert main(["import-qwen3", str(directory), str(tmp_path / "c"), "--preset", "tiny"]) == 0
    assert "not trained" in (tmp_path / "c" / "WEIGHTS").read_text()


def test_what_the_backbone_lacks_is_refused(hf, tmp_path):
    _, directory = hf
    data = json.loads((directory / "config.json").read_text())
    for change, message in (
        ({"model_type": "llama"}, "expected model_type 'qwen3', got 'llama'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"quantization_config": {"quant_method": "fp8"}}, "no .*quantization.*fp8"),
        ({"hidden_size": "x"}, "hidden_size: expected int, got str"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(data | change))
        with pytest.raises(ValueError, match=message):
            import_qwen3(tmp_path, preset("tiny"), seed=0)
    short = {key: value for key, value in data.items() if key not in ("num_hidden_layers", "hidden_size")}
    for text, message in (
        (b"version https://git-lfs", "Git LFS pointer"),
        (json.dumps(short).encode(), "no hidden_size"),
    ):
        (tmp_path / "config.json").write_bytes(text)
        with pytest.raises(CheckpointError, match=message):
            import_qwen3(tmp_path, preset("tiny"), seed=0)
    with pytest.raises(CheckpointError, match="no such file"):
        import_qwen3(tmp_path / "absent", preset("tiny"), seed=0)


def test_names_without_their_prefix_and_a_source_that_stays(hf, tmp_path, capsys):
    """Embedding checkpoints leave `model.` out; nobody's weights are replaced; a tokenizer must be there and be one."""
    model, directory = hf
    source = tmp_path / "source"
    source.mkdir()
    tensors = {name.removeprefix("model."): t.contiguous() for name, t in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    save_file(tensors, source / "model.safetensors")
    shutil.copy(directory / "config.json", source)
    arguments = ["import-qwen3", str(source), str(source), "--preset", "tiny"]
    for text, message in (
        (None, "no tokenizer.json"),
        ("version https://git-lfs.github.com/spec/v1\n", "not a tokenizer .*Git LFS pointer"),
        ((directory / "tokenizer.json").read_text(), "found other weights: not replaced"),
    ):
        if text is not None:
            (source / "tokenizer.json").write_text(text)
        assert main(arguments) == 1
        assert re.search(message, capsys.readouterr().err)
    ours, _ = import_qwen3(source, preset("tiny"), seed=0)
    torch.testing.assert_close(ours.model.norm.weight, model.model.norm.weight)
