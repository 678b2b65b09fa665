"""The backbone is Qwen3: same weights, same tokens, same logits as transformers' own model."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from engine_builder.__main__ import main
from engine_builder.checkpoint import CheckpointError
from engine_builder.importers.qwen3 import backbone_config, import_qwen3
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
        ({"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}, "no .*quantization.*modelopt"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "this backbone has no .*yarn"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "this backbone has no .*linear"),
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


def test_what_a_config_does_not_say_is_as_in_transformers():
    """Old or hand-made ones leave out what was a default."""
    said = {
        "model_type": "qwen3",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 32,
        "intermediate_size": 96,
        "vocab_size": 600,
    }
    theirs, ours = Qwen3Config.from_dict(said), backbone_config(said, "here")
    assert (ours.kv_heads, ours.head_dim) == (theirs.num_key_value_heads, theirs.head_dim)
    assert (ours.rms_eps, ours.rope_theta) == (theirs.rms_norm_eps, theirs.rope_parameters["rope_theta"])
    assert ours.tied_head == theirs.tie_word_embeddings
    assert backbone_config(said | {"num_key_value_heads": None, "num_attention_heads": 4}, "here").kv_heads == 4


def test_weights_that_are_not_what_the_config_says(hf, tmp_path, capsys):
    """One sentence with the cause, and no list of all tensors."""
    _, directory = hf
    config = json.loads((directory / "config.json").read_text())
    whole = (directory / "model.safetensors").read_bytes()
    shutil.copy(directory / "tokenizer.json", tmp_path)
    cases = [
        ({}, b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer: `git lfs pull`"),
        ({}, whole[: len(whole) // 2], "not a safetensors file, or cut short"),
        ({"vocab_size": 608}, whole, r"misshapen model.embed_tokens.weight: expected \[608, 64\], got \[600, 64\]"),
        ({"head_dim": 16}, whole, r"tensors do not fit the config:\n(.*\n){12}.*and \d+ more"),
        ({"num_hidden_layers": 9}, whole, r"missing backbone tensors:\n(.*\n){12}.*and \d+ more"),
        ({"model_type": "qwen3_vl", "text_config": config}, whole, "expected model_type 'qwen3', got 'qwen3_vl'"),
    ]
    if config["tie_word_embeddings"]:
        cases.append(({"tie_word_embeddings": False}, whole, "no lm_head.weight, though .* say true there"))
    for change, weights, message in cases:
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        (tmp_path / "model.safetensors").write_bytes(weights)
        assert main(["import-qwen3", str(tmp_path), str(tmp_path / "c"), "--preset", "tiny"]) == 1
        said = capsys.readouterr().err
        assert re.search(message, said), said
        assert said.count("\n") < 16


@pytest.mark.parametrize("rows", [597, 601])
def test_tables_of_any_length(rows, tmp_path):
    """Such as the 151,669 of a tokenizer without its padding."""
    config = Qwen3Config(vocab_size=rows, hidden_size=64, intermediate_size=96, num_hidden_layers=1, head_dim=32)
    config.num_attention_heads = config.num_key_value_heads = 2
    Qwen3ForCausalLM(config).save_pretrained(tmp_path)
    write_tiny_tokenizer(tmp_path / "tokenizer.json")
    ours, _ = import_qwen3(tmp_path, preset("tiny"), seed=0)
    assert ours.model.embed_tokens.weight.shape[0] == rows


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


def test_shards_of_bfloat16(hf, tmp_path):
    model, directory = hf
    half = Qwen3ForCausalLM(model.config).bfloat16()
    half.load_state_dict({name: t.bfloat16() for name, t in model.state_dict().items()})
    half.save_pretrained(tmp_path, max_shard_size="100KB")
    shutil.copy(directory / "tokenizer.json", tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    ours, _ = import_qwen3(tmp_path, preset("tiny"), seed=0)
    for name, tensor in half.state_dict().items():
        if name in ours.state_dict():
            assert torch.equal(ours.state_dict()[name], tensor.float()), name


@pytest.mark.parametrize("place", ["config.json", "hf_quant_config.json"])
def test_fp8_of_modelopt_is_multiplied_out_and_said_so(hf, tmp_path, place, capsys):
    """A scale for most matrices, one a row for some; the head and the norms were left as they are."""
    model, directory = hf
    config = json.loads((directory / "config.json").read_text())
    said = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}
    if place == "config.json":
        config["quantization_config"] = {"quant_method": "modelopt", **said}
    else:
        (tmp_path / place).write_text(json.dumps({"producer": {"name": "modelopt"}, "quantization": said}))
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(directory / "tokenizer.json", tmp_path)
    tensors, wanted = {}, {}
    for name, tensor in model.state_dict().items():
        if "_proj.weight" not in name:
            tensors[name] = wanted[name] = tensor.contiguous()
            continue
        scale = tensor.abs().amax(dim=1) / 448 if "up_proj" in name else tensor.abs().max() / 448
        tensors[name] = (tensor / scale.reshape(-1, 1)).to(torch.float8_e4m3fn)
        wanted[name] = tensors[name].float() * scale.reshape(-1, 1)
        tensors |= {f"{name}_scale": scale, name.replace("weight", "input_scale"): torch.ones(())}
        torch.testing.assert_close(wanted[name], tensor, atol=float(tensor.abs().max()) / 16, rtol=0)
    tensors["model.layers.0.self_attn.k_proj.k_scale"] = torch.ones(())
    if config["tie_word_embeddings"]:
        del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    assert main(["import-qwen3", str(tmp_path), str(tmp_path / "c"), "--preset", "tiny"]) == 0
    assert "dequantised from FP8" in capsys.readouterr().out
    assert "(dequantised from FP8 of ModelOpt)" in (tmp_path / "c" / "WEIGHTS").read_text()
    ours, _ = import_qwen3(tmp_path, preset("tiny"), seed=0)
    for name, tensor in wanted.items():
        if name in ours.state_dict():
            torch.testing.assert_close(ours.state_dict()[name], tensor)
    del tensors["model.layers.1.mlp.down_proj.weight_scale"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"layers\.1\.mlp\.down_proj\.weight: expected an FP8 matrix with a scale"
    ):
        import_qwen3(tmp_path, preset("tiny"), seed=0)
