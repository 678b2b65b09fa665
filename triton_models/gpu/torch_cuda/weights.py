"""The packed weights of the `torch-cuda` target on their device (written by `engine_builder.targets.torch_cuda`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from engine_builder.config import TAU_FREQUENCIES, ModelConfig
from engine_builder.model.duplex import INIT_STD, residual_scale, tau_frequencies
from engine_builder.targets.precision import dtype_of
from engine_builder.targets.torch_cuda import FP8_MATRICES, PRECISION, SEED, pack_matrix

_OF_LAYERS = tuple(f".{name}" for name in FP8_MATRICES)


class WeightsError(ValueError):
    """A weights file that does not fit the model; lists every missing, extra or misshapen tensor."""


@dataclass(frozen=True)
class Fp8Matrix:
    """A row of `values` float8 [out, in] times its `scale` float32 [out] is a row of the matrix."""

    values: Tensor
    scale: Tensor


Matrix = Tensor | Fp8Matrix


@dataclass(frozen=True)
class LayerWeights:
    """One Transformer layer. Matrices are [out, in] in the engine's precision, norms float32."""

    norm_in: Tensor  # [d]
    norm_post: Tensor  # [d]
    q_norm: Tensor  # [D]
    k_norm: Tensor  # [D]
    qkv: Matrix  # [(H + 2 G) D, d]
    out: Matrix  # [d, H D]
    gate_up: Matrix  # [2 F, d]
    down: Matrix  # [d, F]


class BackboneWeights:
    """What think and perform read. `dtype` is the precision of the KV pool, and of all matrices that are no float8."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
        fp8 = "layers.0.qkv.scale" in tensors
        expected = expected_shapes(config, fp8)
        wrong = [f"missing {name} {list(shape)}" for name, shape in expected.items() if name not in tensors]
        wrong += [f"extra {name}" for name in tensors if name not in expected]
        wrong += [
            f"misshapen {name}: expected {list(shape)}, got {list(tensors[name].shape)}"
            for name, shape in expected.items()
            if name in tensors and tuple(tensors[name].shape) != shape
        ]
        if wrong:
            raise WeightsError(f"{len(wrong)} tensors do not fit {config.name}:\n  " + "\n  ".join(sorted(wrong)))
        self.config = config
        self.tensors = dict(tensors)
        self.dtype = tensors["embed"].dtype
        self.device = tensors["embed"].device
        self.layers = [
            LayerWeights(**{name: self._part(f"layers.{i}.{name}") for name in LayerWeights.__annotations__})
            for i in range(config.backbone.layers)
        ]

    def _part(self, name: str) -> Any:
        tensor, scale = self.tensors[name], self.tensors.get(f"{name}.scale")
        return tensor if scale is None else Fp8Matrix(tensor, scale)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @property
    def head(self) -> Tensor:
        """The language head [V, d]; the embedding table if they are tied."""
        return self.tensors.get("head", self.tensors["embed"])

    @classmethod
    def load(cls, path: Path, config: ModelConfig, device: torch.device | str) -> BackboneWeights:
        with safe_open(path, framework="pt") as file:
            drawn = file.metadata() or {}
        if SEED in drawn:
            return cls.random(config, device, drawn[PRECISION], int(drawn[SEED]))
        return cls(config, read_tensors(path, device))

    @classmethod
    def random(cls, config: ModelConfig, device: torch.device | str, precision: str, seed: int) -> BackboneWeights:
        """Drawn on the device, as `init_weights` draws them: nothing of this size is made on the host."""
        generator = torch.Generator(device).manual_seed(seed)
        depth, dtype = residual_scale(config), dtype_of(precision)
        tensors: dict[str, Tensor] = {}
        for name, shape in expected_shapes(config).items():
            tensor = torch.empty(shape, device=device, dtype=dtype if is_matrix(name) else torch.float32)
            if "norm" in name:
                tensor.fill_(1.0)
            elif name.endswith("bias"):
                tensor.zero_()
            elif name == "tau.frequency":
                tensor.copy_(tau_frequencies())
            else:
                std = INIT_STD * depth if name.endswith((".out", ".down", "down_proj.weight")) else INIT_STD
                tensor.normal_(0.0, std, generator=generator)
            packed = name.endswith(_OF_LAYERS)
            tensors |= pack_matrix(name, tensor, precision) if packed else {name: tensor}
        return cls(config, tensors)


def is_matrix(name: str) -> bool:
    """True for tensors in the engine's precision; all others are float32."""
    return name in ("embed", "head", "tau.project.weight") or name.endswith(_OF_LAYERS)


def expected_shapes(config: ModelConfig, fp8: bool = False) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the backbone file; with the scales of float8 matrices, if they are such."""
    b, v, a = config.backbone, config.video, config.audio
    d, heads, groups = b.hidden_size, b.heads, b.kv_heads
    shapes: dict[str, tuple[int, ...]] = {"embed": (config.language.vocab_size, d), "norm": (d,)}
    if not b.tied_head:
        shapes["head"] = (config.language.vocab_size, d)
    for i in range(b.layers):
        shapes |= {
            f"layers.{i}.norm_in": (d,),
            f"layers.{i}.norm_post": (d,),
            f"layers.{i}.q_norm": (b.head_dim,),
            f"layers.{i}.k_norm": (b.head_dim,),
            f"layers.{i}.qkv": ((heads + 2 * groups) * b.head_dim, d),
            f"layers.{i}.out": (d, heads * b.head_dim),
            f"layers.{i}.gate_up": (2 * b.intermediate_size, d),
            f"layers.{i}.down": (d, b.intermediate_size),
        }
        if fp8:
            shapes |= {f"layers.{i}.{name}.scale": shapes[f"layers.{i}.{name}"][:1] for name in FP8_MATRICES}
    for name, tokens, channels in (("video", v.tokens, v.latent_dim), ("audio", a.tokens, a.latent_dim)):
        shapes |= {
            f"{name}_in.weight": (d, channels),
            f"{name}_in.bias": (d,),
            f"{name}_out.weight": (channels, d),
            f"{name}_out.bias": (channels,),
            f"{name}_position": (tokens, d),
        }
    if a.head_channels:
        shapes |= {
            "audio_hidden.up_proj.weight": (a.head_channels, d),
            "audio_hidden.up_proj.bias": (a.head_channels,),
            "audio_hidden.down_proj.weight": (a.latent_dim, a.head_channels),
        }
    return shapes | {
        "tau.frequency": (TAU_FREQUENCIES,),
        "tau.embed.weight": (d, 2 * TAU_FREQUENCIES),
        "tau.embed.bias": (d,),
        "tau.project.weight": (6 * d, d),
        "tau.project.bias": (6 * d,),
        "tau.tables": (b.layers, 6, d),
    }


def read_tensors(path: Path, device: torch.device | str) -> dict[str, Tensor]:
    """All tensors of a safetensors file, read straight onto the device."""
    with safe_open(path, framework="pt", device=str(device)) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
