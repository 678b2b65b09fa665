"""Takes the backbone of a model from a Hugging Face Qwen3 checkpoint; everything else stays randomly initialised."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checkpoint import TOKENIZER, CheckpointError, copy_tensors, random_model, read_tensors
from ..config import BackboneConfig, ModelConfig
from ..model.duplex import DuplexModel


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
    if unsupported:
        raise CheckpointError(f"{where}: this backbone has no {unsupported}")
    return BackboneConfig(
        hidden_size=hf["hidden_size"],
        layers=hf["num_hidden_layers"],
        heads=hf["num_attention_heads"],
        kv_heads=hf["num_key_value_heads"],
        head_dim=hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"],
        intermediate_size=hf["intermediate_size"],
        rope_theta=float(rope.get("rope_theta", hf.get("rope_theta", 1_000_000.0))),
        rms_eps=float(hf["rms_norm_eps"]),
        tied_head=bool(hf.get("tie_word_embeddings", False)),
    )


def import_qwen3(source: Path, template: ModelConfig, seed: int) -> tuple[DuplexModel, Path | None]:
    """Builds a model with the audio and video geometry of `template` around the backbone found in `source`.

    Returns the model and the path of the tokenizer, if the checkpoint has one. Raises `CheckpointError` with all
    tensors that do not fit.
    """
    where = str(source)
    config_file = source / "config.json"
    if not config_file.exists():
        raise CheckpointError(f"{config_file}: no such file; expected a Hugging Face Qwen3 checkpoint directory")
    hf = json.loads(config_file.read_text())
    language = replace(template.language, vocab_size=hf["vocab_size"])
    config = replace(template, language=language, backbone=backbone_config(hf, where))
    model = random_model(config, seed)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in read_tensors(source):
            if name != "lm_head.weight" or not config.backbone.tied_head:
                yield name, tensor.float()

    expected = {name for name in model.state_dict() if name.startswith(("model.", "lm_head."))}
    seen: set[str] = set()

    def noting() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors():
            seen.add(name)
            yield name, tensor

    copy_tensors(model, noting(), where, partial=True)
    if expected - seen:
        raise CheckpointError(f"{where}: missing backbone tensors:\n  " + "\n  ".join(sorted(expected - seen)))
    tokenizer = source / TOKENIZER
    return model, tokenizer if tokenizer.exists() else None
