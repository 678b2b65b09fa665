"""Perceive and render on the GPU: the encoders and codecs of the model itself, in float32, without its backbone.

They are small (below 1% of a unit at the papers' geometry), so what the oracle runs is what is served.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import nn

from engine_builder.config import ModelConfig
from engine_builder.model.duplex import DuplexModel, MediaParts
from engine_builder.model.steps import EncodeStep, PerceiveStep, RenderStep, codec_parts

from .weights import WeightsError, read_tensors

# cuDNN would round the inputs of float32 convolutions to 10 bits. Matrix products are exact by default; so be these.
torch.backends.cudnn.allow_tf32 = False


class _Parts(nn.Module):
    """The parts of a `DuplexModel` that a step uses, under the same names."""

    def __init__(self, step: str, config: ModelConfig) -> None:
        super().__init__()
        parts = MediaParts.of(config)._asdict()
        for name in codec_parts(step, config):
            self.add_module(name, parts[name])


def perceive_module(config: ModelConfig, device: torch.device) -> PerceiveStep:
    """The perceive step with untrained weights."""
    return PerceiveStep(cast(DuplexModel, _Parts("perceive", config))).to(device).eval()


def render_module(config: ModelConfig, device: torch.device) -> RenderStep:
    """The render step with untrained weights."""
    return RenderStep(cast(DuplexModel, _Parts("render", config))).to(device).eval()


def encode_module(config: ModelConfig, device: torch.device) -> EncodeStep:
    """The encode step with untrained weights."""
    return EncodeStep(cast(DuplexModel, _Parts("encode", config))).to(device).eval()


def load_module(step: PerceiveStep | RenderStep | EncodeStep, path: Path) -> None:
    """Copies the weights of a file into a step. `WeightsError` lists what does not fit."""
    tensors, targets = read_tensors(path, "cpu"), step.model.state_dict()
    wrong = sorted(set(targets) ^ set(tensors))
    wrong += [name for name in targets if name in tensors and tensors[name].shape != targets[name].shape]
    if wrong:
        raise WeightsError(f"{path}: these tensors are missing, extra or misshapen: {', '.join(wrong)}")
    for name, target in targets.items():
        target.copy_(tensors[name])
