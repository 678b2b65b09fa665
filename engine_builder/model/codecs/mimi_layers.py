"""Streaming layers of the Mimi-VAE, with the names that its published weights have.

Structure of SEANet (Tagliasacchi et al. 2020) and Mimi (Defossez et al. 2024) as Pocket TTS publishes it. Shapes:
x [B, C, T] in convolutions, [B, T, C] in attention.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..backbone import attend
from .codec import Tape

ROPE_PERIOD = 10_000.0
NORM_EPS = 1e-5


class StreamConv1d(nn.Module):
    """A causal convolution; its state is the overlap with the steps before. `repeat`: a fresh stream repeats its first
    step backwards instead of beginning with zeros."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
        repeat: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride, dilation=dilation, bias=bias)
        self.overlap = (kernel - 1) * dilation + 1 - stride
        self.repeat = repeat

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        if self.overlap == 0:
            return self.conv(x)
        past = tape.take(self.conv.in_channels, self.overlap)
        if tape.fresh and self.repeat:
            past = past + x[..., :1]
        x = torch.cat((past, x), dim=-1)
        tape.put(x[..., -self.overlap :])
        return self.conv(x)


class StreamConvTranspose1d(nn.Module):
    """A causal transposed convolution; its state is what the steps before add to the first outputs."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.convtr = nn.ConvTranspose1d(inputs, outputs, kernel, stride, groups=groups, bias=bias)
        self.overlap = kernel - stride

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        y = self.convtr(x)
        past = tape.take(self.convtr.out_channels, self.overlap)
        head, tail = y[..., : -self.overlap], y[..., -self.overlap :]
        bias = self.convtr.bias
        tape.put(tail if bias is None else tail - bias[:, None])  # the next outputs add it once themselves
        return torch.cat((head[..., : self.overlap] + past, head[..., self.overlap :]), dim=-1)


class Residual(nn.Module):
    """x + conv(elu(conv(elu(x)))) through half the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.block = nn.ModuleList(
            (nn.ELU(), StreamConv1d(channels, half, 3), nn.ELU(), StreamConv1d(half, channels, 1))
        )

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        return x + run(self.block, x, tape)


class SeaNet(nn.Module):
    """A stack of the layers above, under the published name."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.model = nn.ModuleList(layers)

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        return run(self.model, x, tape)


def run(layers: nn.ModuleList, x: Tensor, tape: Tape) -> Tensor:
    for layer in layers:
        x = layer(x) if isinstance(layer, nn.ELU) else layer(x, tape)
    return x


class Attention(nn.Module):
    """Each step sees the last `context` steps, itself among them. State: their K, not yet rotated, and V.

    RoPE tells distances only, so positions are counted from the oldest step kept: no session ever has a large one.
    """

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.heads, self.head_dim, self.context = heads, width // heads, context
        self.in_proj = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        kept, steps = self.context - 1, x.shape[1]
        q, k, v = self.in_proj(x).unflatten(-1, (3, self.heads, self.head_dim)).unbind(2)
        kv = torch.cat((tape.take(kept, 2, self.heads, self.head_dim), torch.stack((k, v), dim=2)), dim=1)
        tape.put(kv[:, -kept:])
        before = 0 if tape.fresh else kept
        k, v = kv[:, kept - before :].unbind(2)
        key = torch.arange(before + steps, device=x.device)
        distance = key[before:, None] - key[None, :]
        visible = (distance >= 0) & (distance < self.context)
        return self.out_proj(attend(rotate(q, key[before:]), rotate(k, key), v, visible.unsqueeze(0)))


def rotate(x: Tensor, position: Tensor) -> Tensor:
    """RoPE over neighbouring pairs. x [B, T, heads, D], position [T]."""
    pairs = x.shape[-1] // 2
    frequency = torch.exp(-math.log(ROPE_PERIOD) / pairs * torch.arange(pairs, device=x.device))
    angle = position[:, None, None] * frequency
    cos, sin = torch.cos(angle), torch.sin(angle)
    real, imaginary = x.unflatten(-1, (pairs, 2)).unbind(-1)
    return torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1).flatten(-2)


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), 0.01))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


class Layer(nn.Module):
    """Pre-norm attention and MLP, each scaled per channel."""

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads, context)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=NORM_EPS), nn.LayerNorm(width, eps=NORM_EPS)
        self.linear1 = nn.Linear(width, 4 * width, bias=False)
        self.linear2 = nn.Linear(4 * width, width, bias=False)
        self.layer_scale_1, self.layer_scale_2 = LayerScale(width), LayerScale(width)

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        x = x + self.layer_scale_1(self.self_attn(self.norm1(x), tape))
        hidden = nn.functional.gelu(self.linear1(self.norm2(x)), approximate="tanh")
        return x + self.layer_scale_2(self.linear2(hidden))


class _Layers(nn.Module):
    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class Transformer(nn.Module):
    """Layers over x [B, C, T], under the published names."""

    def __init__(self, width: int, heads: int, layers: int, context: int) -> None:
        super().__init__()
        self.transformer = _Layers([Layer(width, heads, context) for _ in range(layers)])

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        x = x.transpose(1, 2)
        for layer in self.transformer.layers:
            x = layer(x, tape)
        return x.transpose(1, 2)
