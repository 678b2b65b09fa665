"""The backbone is Qwen3: same weights, same tokens, same logits as transformers' own model."""

import json

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from engine_builder.checkpoint import CheckpointError
from engine_builder.cli import main
from engine_builder.config import preset
from engine_builder.importers.qwen3 import import_qwen3
from engine_builder.layout import rope_tables

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
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(data | change))
        with pytest.raises(CheckpointError, match=message):
            import_qwen3(tmp_path, preset("tiny"), seed=0)
    with pytest.raises(CheckpointError, match="no such file"):
        import_qwen3(tmp_path / "absent", preset("tiny"), seed=0)
