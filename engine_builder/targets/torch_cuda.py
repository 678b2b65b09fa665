"""Target `torch-cuda`: weights packed for the GPU executor; its graphs are captured on the device that serves.

Three files, safetensors all: `backbone` (shared by think and perform), `perceive` and `render`. Matrices of the
backbone are rounded to the chosen precision; norms, projections of latents, tau, encoders and codecs stay float32.
In fp8 the matrices of the layers are float8, each with a float32 `scale` for every row (`NAME.scale`).
Q, K and V lie under each other as one matrix, and so do gate and up, because they are multiplied by the same vector.
The backbone of a checkpoint that is a seed is a file without tensors: `SEED` and `PRECISION` in its metadata say what
to draw on the device that loads it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..config import ModelConfig
from ..manifest import TensorSpec
from ..model.duplex import DuplexModel
from ..model.steps import StepSpec, codec_parts, step_specs
from .precision import dtype_of, to_fp8

FILE_SUFFIX = ".safetensors"
FILES = {"perceive": "perceive", "think": "backbone", "perform": "backbone", "render": "render", "encode": "render"}
SEED, PRECISION = "seed", "precision"
FP8_MATRICES = ("qkv", "out", "gate_up", "down")
POOLS = ("k_pool", "v_pool")


def pack_backbone(model: DuplexModel, precision: str) -> dict[str, Tensor]:
    """Everything that think and perform need, by the names that the executor reads."""
    w, dtype = model.state_dict(), dtype_of(precision)
    packed = {"embed": w["model.embed_tokens.weight"].to(dtype), "norm": w["model.norm.weight"]}
    if not model.config.backbone.tied_head:
        packed["head"] = w["lm_head.weight"].to(dtype)
    for i in range(model.config.backbone.layers):
        layer, attention, mlp = f"model.layers.{i}", f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
        packed |= {
            f"layers.{i}.norm_in": w[f"{layer}.input_layernorm.weight"],
            f"layers.{i}.norm_post": w[f"{layer}.post_attention_layernorm.weight"],
            f"layers.{i}.q_norm": w[f"{attention}.q_norm.weight"],
            f"layers.{i}.k_norm": w[f"{attention}.k_norm.weight"],
        }
        matrices = {
            "qkv": torch.cat([w[f"{attention}.{x}_proj.weight"] for x in "qkv"]),
            "out": w[f"{attention}.o_proj.weight"],
            "gate_up": torch.cat([w[f"{mlp}.{x}_proj.weight"] for x in ("gate", "up")]),
            "down": w[f"{mlp}.down_proj.weight"],
        }
        for name, matrix in matrices.items():
            packed |= pack_matrix(f"layers.{i}.{name}", matrix, precision)
    for name in ("video_in", "audio_in", "video_out", "audio_out"):
        packed |= {f"{name}.{part}": w[f"{name}.{part}"] for part in ("weight", "bias")}
    packed |= {name: w[name] for name in ("video_position", "audio_position")}
    packed |= {name: w[name] for name in w if name.startswith("audio_hidden.")}
    packed["tau.frequency"] = model.modulation.frequency
    packed["tau.project.weight"] = w["modulation.project.weight"].to(dtype)
    for name in ("embed.weight", "embed.bias", "project.bias", "tables"):
        packed[f"tau.{name}"] = w[f"modulation.{name}"]
    return packed


def pack_matrix(name: str, matrix: Tensor, precision: str) -> dict[str, Tensor]:
    """A matrix of a layer [out, in] by the names that it has in the file."""
    if precision != "fp8":
        return {name: matrix.to(dtype_of(precision))}
    values, scale = to_fp8(matrix)
    return {name: values, f"{name}.scale": scale}


def pack_modules(model: DuplexModel, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The parameters of encoders or codecs in float32, by the names that they have in a checkpoint."""
    return {f"{name}.{key}": t for name in names for key, t in getattr(model, name).state_dict().items()}


class WeightsBuilder:
    """Writes the packed weights of each step; two steps that share a file get it once. `seed`: of a backbone that is
    drawn on the device."""

    def __init__(self, config: ModelConfig, precision: str, seed: int | None = None) -> None:
        self.config, self.precision, self.seed = config, precision, seed
        self.dtype = dtype_of(precision)
        self._layouts: dict[str, str] = {}

    def libraries(self) -> dict[str, str]:
        """Nothing is compiled here: torch and Triton count on the machine that serves."""
        return {}

    def build_step(self, step: str, model: DuplexModel, directory: Path) -> tuple[Path, str]:
        """Writes the file of `step` into `directory`. Returns it and the SHA-256 of its tensors' names and shapes."""
        path = directory / f"{FILES[step]}{FILE_SUFFIX}"
        if path.exists():  # written for another step
            return path, self._layouts[path.name]
        metadata = None
        if step in ("perceive", "render", "encode"):
            tensors = pack_modules(model, codec_parts(step, self.config))
        elif self.seed is not None:
            tensors, metadata = {}, {SEED: str(self.seed), PRECISION: self.precision}
        else:
            tensors = pack_backbone(model, self.precision)
        save_file({name: t.detach().contiguous() for name, t in tensors.items()}, path, metadata)
        path.chmod(0o644)  # safetensors makes files private; the server may run as another user
        described = sorted((name, str(t.dtype), list(t.shape)) for name, t in tensors.items())
        self._layouts[path.name] = hashlib.sha256(json.dumps(described).encode()).hexdigest()
        return path, self._layouts[path.name]


Specs = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]


def tensor_specs(config: ModelConfig, dtype: torch.dtype) -> dict[str, Specs]:
    """Inputs and outputs of every step as the manifest lists them; the pools have the engine's precision.

    Output shapes come from a run on meta tensors, which costs no memory and no time.
    """
    with torch.device("meta"), torch.no_grad():
        specs = step_specs(DuplexModel(config))
        return {
            name: (tuple(_inputs(spec, dtype)), tuple(_outputs(spec, spec.module(*spec.inputs.values()))))
            for name, spec in specs.items()
        }


def _inputs(spec: StepSpec, dtype: torch.dtype) -> Iterator[TensorSpec]:
    for name, tensor in spec.inputs.items():
        axes = spec.dynamic.get(name, {})
        shape = tuple(axes.get(i, size) for i, size in enumerate(tensor.shape))
        yield TensorSpec(name, _name(dtype if name in POOLS else tensor.dtype), shape)


def _outputs(spec: StepSpec, results: tuple[Tensor, ...]) -> Iterator[TensorSpec]:
    for name, tensor in zip(spec.outputs, results, strict=True):
        new = name in ("k_new", "v_new")  # [L, B, T, G, D]
        shape = (tensor.shape[0], "batch", "tokens", *tensor.shape[3:]) if new else ("batch", *tensor.shape[1:])
        yield TensorSpec(name, _name(tensor.dtype), shape)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
