"""Other names under which the weights of codecs go round, turned into those that the families publish today."""

from __future__ import annotations

import re

import torch
from torch import Tensor

_WAN_MARK = re.compile(r"(encoder|decoder)\.middle\.")  # the .pth of the authors
_WAN = (
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"^(\w+)\.conv1\.", r"\1.conv_in."),
    (r"\.head\.0\.", ".norm_out."),
    (r"\.head\.2\.", ".conv_out."),
    (r"\.middle\.0\.", ".mid_block.resnets.0."),
    (r"\.middle\.1\.", ".mid_block.attentions.0."),
    (r"\.middle\.2\.", ".mid_block.resnets.1."),
    (r"\.residual\.0\.", ".norm1."),
    (r"\.residual\.2\.", ".conv1."),
    (r"\.residual\.3\.", ".norm2."),
    (r"\.residual\.6\.", ".conv2."),
    (r"\.shortcut\.", ".conv_shortcut."),
    (r"\.downsamples\.", ".down_blocks."),
)
_UP = re.compile(r"\.upsamples\.(\d+)\.")
_PER_SIZE = 4  # three blocks of a size, then the step to the next one, numbered through

_POCKET_MARK = "in_proj_weight"  # Mimi as it was trained: wrapped convolutions, and tensors of the training
_POCKET_LEFT = re.compile(r"wavlm_|quantizer\.vq\.|quantizer\.logvar|_codebook")


def today(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under today's names: of the Wan VAE those of diffusers, of Mimi those of Pocket TTS. Others stay."""
    if any(_WAN_MARK.match(name) for name in tensors):
        return {_wan(name): t for name, t in tensors.items()}
    if any(_POCKET_MARK in name for name in tensors) and not any(name.startswith("mimi.") for name in tensors):
        return _pocket(tensors)
    return tensors


def _wan(name: str) -> str:
    for old, new in _WAN:
        name = re.sub(old, new, name)

    def place(found: re.Match[str]) -> str:
        size, block = divmod(int(found[1]), _PER_SIZE)
        return f".up_blocks.{size}.resnets.{block}." if block < _PER_SIZE - 1 else f".up_blocks.{size}.upsamplers.0."

    return _UP.sub(place, name)


def _pocket(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, tensor in tensors.items():
        if _POCKET_LEFT.search(name) or name.endswith(".weight_v"):
            continue
        if name.endswith(".weight_g"):  # weight normalisation, multiplied out
            name = name.removesuffix("_g")
            direction = tensors[f"{name}_v"]
            length = torch.linalg.vector_norm(direction, dim=tuple(range(1, direction.dim())), keepdim=True)
            tensor = tensor * direction / length
        name = name.removeprefix("model.")
        for twice in (".conv", ".convtr"):
            name = name.replace(f"{twice}{twice}.", f"{twice}.")
        found[name.replace("in_proj_weight", "in_proj.weight")] = tensor
    return found
