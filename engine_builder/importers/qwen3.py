"""Takes the backbone of a model from a Hugging Face Qwen3 checkpoint; everything else stays randomly initialised."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer
from torch import Tensor

from ..checkpoint import TOKENIZER, CheckpointError, copy_tensors, pointer, random_model, read_tensors
from ..config import BackboneConfig, ModelConfig, from_json
from ..model.duplex import DuplexModel

_NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")


def backbone_config(hf: dict[str, Any], where: str) -> BackboneConfig:
    """The backbone of a Hugging Face Qwen3 `config.json`; what this architecture lacks is refused by name."""
    if hf.get("model_type") != "qwen3":
        raise CheckpointError(f"{where}: expected model_type 'qwen3', got {hf.get('model_type')!r}")
    unsupported = {
        key: hf[key]
        for key, plain in (("attention_bias", False), ("use_sliding_window", False), ("hidden_act", "silu"))
        if hf.get(key, plain) != plain
    }
    # transformers 5 nests RoPE under rope_parameters; 4 keeps rope_theta and rope_scaling at the top.
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        unsupported["rope"] = rope
    if hf.get("quantization_config"):
        unsupported["quantization"] = hf["quantization_config"].get("quant_method", "of its weights")
    if unsupported:
        raise CheckpointError(f"{where}: this backbone has no {unsupported}")
    absent = [name for name in _NEEDED if name not in hf]
    if absent:
        raise CheckpointError(f"{where}: config.json has no {', '.join(absent)}")
    # What a file does not say has transformers' default, as in Qwen3Config.
    found = {
        "hidden_size": hf["hidden_size"],
        "layers": hf["num_hidden_layers"],
        "heads": hf["num_attention_heads"],
        "kv_heads": hf.get("num_key_value_heads") or hf["num_attention_heads"],
        "head_dim": hf.get("head_dim") or 128,
        "intermediate_size": hf["intermediate_size"],
        "rope_theta": rope.get("rope_theta", hf.get("rope_theta", 1_000_000.0)),
        "rms_eps": hf.get("rms_norm_eps", 1e-6),
        "tied_head": hf.get("tie_word_embeddings", False),
    }
    return from_json(BackboneConfig, found, where)


def import_qwen3(source: Path, template: ModelConfig, seed: int) -> tuple[DuplexModel, Path]:
    """Builds a model with the audio and video geometry of `template` around the backbone found in `source`.

    Returns the model and the path of the tokenizer, without which words would get the ids of other tokens. Raises
    `CheckpointError` with all tensors that do not fit.
    """
    where, config_file, tokenizer = str(source), source / "config.json", source / TOKENIZER
    if not config_file.exists():
        raise CheckpointError(f"{config_file}: no such file; expected a Hugging Face Qwen3 checkpoint directory")
    try:
        hf = msgspec.json.decode(config_file.read_bytes(), type=dict)
    except (msgspec.DecodeError, RecursionError) as error:
        raise CheckpointError(f"{config_file}: not valid JSON ({error}){pointer(config_file)}") from None
    backbone = backbone_config(hf, where)
    config = replace(template, language=replace(template.language, vocab_size=hf["vocab_size"]), backbone=backbone)
    if not tokenizer.exists():
        raise CheckpointError(f"{where}: no {TOKENIZER}; expected that of the checkpoint, copied beside its weights")
    try:
        Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # tokenizers raises nothing more special
        raise CheckpointError(f"{tokenizer}: not a tokenizer ({error}){pointer(tokenizer)}") from None
    model = random_model(config, seed)
    missing = {name for name in model.state_dict() if name.startswith(("model.", "lm_head."))}

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in read_tensors(source):
            # Embedding checkpoints leave the prefix out; some that are tied repeat the table as a head.
            name = name if name.startswith(("model.", "lm_head.")) else f"model.{name}"
            if name != "lm_head.weight" or not backbone.tied_head:
                missing.discard(name)
                yield name, tensor.float()

    copy_tensors(model, tensors(), where, partial=True)
    if missing:
        raise CheckpointError(f"{where}: missing backbone tensors:\n  " + "\n  ".join(sorted(missing)))
    return model, tokenizer
