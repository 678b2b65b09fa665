"""Takes the backbone of a model from a Hugging Face Qwen3 checkpoint; everything else stays randomly initialised."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from tokenizers import Tokenizer
from torch import Tensor

from ..checkpoint import TOKENIZER, CheckpointError, copy_tensors, pointer, random_model, read_tensors, some
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
    quantized = hf.get("quantization_config")
    if quantized and not _is_fp8(quantized.get("quant_method"), quantized):
        unsupported["quantization"] = quantized.get("quant_method", "of its weights")
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
        "kv_heads": hf.get("num_key_value_heads", 32) or hf["num_attention_heads"],
        "head_dim": hf.get("head_dim") or 128,
        "intermediate_size": hf["intermediate_size"],
        "rope_theta": rope.get("rope_theta", hf.get("rope_theta", 10_000.0)),
        "rms_eps": hf.get("rms_norm_eps", 1e-6),
        "tied_head": hf.get("tie_word_embeddings", False),
    }
    return from_json(BackboneConfig, found, where)


def _is_fp8(producer: object, quantization: dict[str, Any]) -> bool:
    """The one kind that is taken: ModelOpt's FP8, a scale a tensor or a row."""
    return producer == "modelopt" and quantization.get("quant_algo") == "FP8"


def fp8_note(source: Path) -> str:
    """What to say of weights that were FP8 in `source`; empty if they were not. `CheckpointError` for other kinds."""
    file, beside = source / "config.json", source / "hf_quant_config.json"  # ModelOpt writes either
    found = msgspec.json.decode(file.read_bytes(), type=dict).get("quantization_config") or {}
    producer = found.get("quant_method")
    if beside.exists():
        try:
            data = msgspec.json.decode(beside.read_bytes(), type=dict[str, dict[str, Any]])
        except msgspec.DecodeError as error:
            raise CheckpointError(f"{beside}: not what ModelOpt writes ({error})") from None
        found, producer = data.get("quantization", {}), data.get("producer", {}).get("name")
    if not found:
        return ""
    if not _is_fp8(producer, found):
        raise CheckpointError(f"{beside}: expected FP8 of modelopt, got {found.get('quant_algo')!r} of {producer!r}")
    return "dequantised from FP8 of ModelOpt"


def _dequantised(source: Path, where: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of an FP8 checkpoint in float32. Scales of activations and of K/V are left: neither is FP8 here."""
    scales = {name: t.float() for name, t in read_tensors(source) if name.endswith(".weight_scale")}
    for name, tensor in read_tensors(source):
        if name.endswith((".weight_scale", ".input_scale", ".k_scale", ".v_scale")):
            continue
        scale = scales.get(f"{name}_scale")
        if tensor.dtype == torch.float8_e4m3fn:
            if scale is None or scale.numel() not in (1, tensor.shape[0]):
                got = "none" if scale is None else f"scales {list(scale.shape)}"
                raise CheckpointError(f"{where}: {name}: expected an FP8 matrix with a scale or one a row, got {got}")
            tensor = tensor.float() * (scale.reshape(-1, 1) if scale.numel() > 1 else scale.reshape(()))
        yield name, tensor


def import_qwen3(source: Path, template: ModelConfig, seed: int) -> tuple[DuplexModel, Path]:
    """Builds a model with the audio and video geometry of `template` around the backbone found in `source`.

    Returns the model and the path of the tokenizer, without which words would get the ids of other tokens. Raises
    `CheckpointError` with what does not fit.
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

    fp8 = bool(fp8_note(source))

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in _dequantised(source, where) if fp8 else read_tensors(source):
            # Embedding checkpoints leave the prefix out; some that are tied repeat the table as a head.
            name = name if name.startswith(("model.", "lm_head.")) else f"model.{name}"
            if name != "lm_head.weight" or not backbone.tied_head:
                missing.discard(name)
                yield name, tensor.float()

    copy_tensors(model, tensors(), where, partial=True)
    if missing == {"lm_head.weight"}:
        raise CheckpointError(
            f"{where}: no lm_head.weight, though its embedding table is no head (tie_word_embeddings is false in "
            "config.json); if the model was trained with one table for both, say true there"
        )
    if missing:
        raise CheckpointError(f"{where}: missing backbone tensors:\n  " + some(missing))
    return model, tokenizer
