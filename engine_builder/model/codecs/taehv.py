"""`taehv`: the tiny autoencoder for the latents of Wan 2.1 (madebyollin's TAEHV, weights taew2_1, MIT).

Convolutions of single pictures; time comes in where a memory block sees the frame before, where two frames are pooled
to one and where one grows to two. A latent stands for the 4 frames that end with its own, so an encoder that has just
seen 4 frames gives the latent whose pictures end 3 frames earlier.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...config import FRAMES_PER_UNIT, WAN_CHANNELS, VideoConfig
from .codec import PublishedCodec, Tape
from .wan_latents import from_tokens, to_tokens

CHANNELS = 64  # published width
MEMORY_BLOCKS = 3  # at each of three sizes


def conv3(inputs: int, outputs: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=bias)


class Memory(nn.Module):
    """Sees each frame beside the one before; that frame is its state."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            conv3(2 * channels, channels), nn.ReLU(), conv3(channels, channels), nn.ReLU(), conv3(channels, channels)
        )

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        """x [B, T, C, h, w] -> the same shape."""
        before = torch.cat((tape.take(*x.shape[2:]).unsqueeze(1), x[:, :-1]), dim=1)
        tape.put(x[:, -1])
        y = self.conv(torch.cat((x, before), dim=2).flatten(0, 1))
        return torch.relu(y.reshape(x.shape) + x)


class TimePool(nn.Module):
    """`frames` neighbours become one frame."""

    def __init__(self, channels: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.conv = nn.Conv2d(frames * channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.shape[1] // self.frames
        y = self.conv(x.reshape(-1, self.frames * x.shape[2], *x.shape[3:]))
        return y.reshape(-1, pooled, *y.shape[1:])


class TimeGrow(nn.Module):
    """One frame becomes `frames`, of twice the height and width."""

    def __init__(self, channels: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.conv = nn.Conv2d(channels, frames * channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # Published after the enlargement; a 1 x 1 convolution before it gives the same for a quarter of the work.
        grown = each_frame(self.conv, x)
        y = grown.reshape(-1, x.shape[1] * self.frames, *x.shape[2:])
        return each_frame(lambda frame: nn.functional.interpolate(frame, scale_factor=2.0, mode="nearest"), y)


def each_frame(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A layer of pictures [N, C, h, w] over x [B, T, C, h, w]."""
    y = layer(x.flatten(0, 1))
    return y.reshape(-1, x.shape[1], *y.shape[1:])


class Clamp(nn.Module):
    """Bends latents into [-3, 3]."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


def run(layers: nn.Sequential, x: Tensor, tape: Tape) -> Tensor:
    for layer in layers:
        if isinstance(layer, Memory):
            x = layer(x, tape)
        else:
            x = layer(x) if isinstance(layer, TimePool | TimeGrow) else each_frame(layer, x)
    return x


class Taehv(PublishedCodec):
    """The family; its layers have the published places in two flat lists."""

    def __init__(self, c: VideoConfig) -> None:
        super().__init__(WAN_CHANNELS)
        self.config = c
        base = c.codec_channels or CHANNELS

        def memories(channels: int) -> list[nn.Module]:
            return [Memory(channels) for _ in range(MEMORY_BLOCKS)]

        encoder: list[nn.Module] = [conv3(3, base), nn.ReLU()]
        for frames in (2, 2, 1):
            encoder += [TimePool(base, frames), conv3(base, base, stride=2, bias=False), *memories(base)]
        self.encoder = nn.Sequential(*encoder, conv3(base, WAN_CHANNELS))
        widths = (4 * base, 2 * base, base, base)
        decoder: list[nn.Module] = [Clamp(), conv3(WAN_CHANNELS, widths[0]), nn.ReLU()]
        for i, frames in enumerate((1, 2, 2)):
            # The enlargement has a place of its own in the published numbering.
            grow = [nn.Identity(), TimeGrow(widths[i], frames)]
            decoder += [*memories(widths[i]), *grow, conv3(widths[i], widths[i + 1], bias=False)]
        self.decoder = nn.Sequential(*decoder, nn.ReLU(), conv3(widths[3], 3))

    def encode(self, media: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """frames uint8 [B, 4 U, H, W, 3] -> latents [B, U * n_v, latent_dim], new state."""
        tape = Tape(state, self.latent_mean.expand(media.shape[0], -1))
        x = media.to(self.latent_mean.dtype).permute(0, 1, 4, 2, 3) / 255.0  # TensorRT moves no bytes about
        latents = run(self.encoder, x, tape)
        scaled = (latents - self.latent_mean.view(-1, 1, 1)) / self.latent_scale.view(-1, 1, 1)
        return to_tokens(scaled, self.config), tape.close()

    def decode(self, latents: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """latents [B, U * n_v, latent_dim] -> pixels [B, 4 U, H, W, 3], new state."""
        tape = Tape(state, latents)
        x = from_tokens(latents, self.config)
        x = run(self.decoder, x * self.latent_scale.view(-1, 1, 1) + self.latent_mean.view(-1, 1, 1), tape)
        return x.permute(0, 1, 3, 4, 2).clamp(0.0, 1.0) * 255.0, tape.close()

    def rest(self) -> Tensor:
        """One unit of grey."""
        c = self.config
        shape = (1, FRAMES_PER_UNIT, c.height, c.width, 3)
        return torch.full(shape, 128, dtype=torch.uint8, device=self.latent_mean.device)

    def twin(self) -> Taehv:
        return Taehv(self.config)
