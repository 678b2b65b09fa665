"""Codecs of the published families with random weights, small or as published, and media for them."""

from __future__ import annotations

import torch
from torch import Tensor

from engine_builder.config import AudioConfig, VideoConfig
from engine_builder.model.codecs import PublishedCodec, audio_codec, video_codec

FAMILIES = ("mimi-vae", "taehv", "wan21")
SMALL = 4  # channels
SIZE = (16, 32)  # of a picture


def audio_config(channels: int = SMALL) -> AudioConfig:
    return AudioConfig(24_000, tokens=2, latent_dim=32, codec="mimi-vae", codec_channels=channels)


def video_config(family: str, channels: int = SMALL, size: tuple[int, int] = SIZE) -> VideoConfig:
    return VideoConfig(*size, stride=16, latent_dim=64, codec=family, codec_channels=channels)


def codec(family: str, channels: int = SMALL, size: tuple[int, int] = SIZE) -> PublishedCodec:
    audio = family == "mimi-vae"
    made = audio_codec(audio_config(channels)) if audio else video_codec(video_config(family, channels, size))
    assert isinstance(made, PublishedCodec)
    generator = torch.Generator().manual_seed(1)
    made.draw(generator)
    made.latent_mean.normal_(generator=generator)
    made.latent_scale.uniform_(0.5, 2.0, generator=generator)
    return made.eval()


def media(family: str, units: int, batch: int = 1, seed: int = 0, size: tuple[int, int] = SIZE) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if family == "mimi-vae":
        return torch.randn(batch, units * 3840, generator=generator) * 0.3
    return torch.randint(0, 256, (batch, 4 * units, *size, 3), generator=generator).byte()


def latents(family: str, units: int, batch: int = 1, seed: int = 0, size: tuple[int, int] = SIZE) -> Tensor:
    tokens, dim = (2, 32) if family == "mimi-vae" else (size[0] * size[1] // 256, 64)
    return torch.randn(batch, tokens * units, dim, generator=torch.Generator().manual_seed(seed))


def lively_mimi(channels: int = SMALL) -> PublishedCodec:
    """Layer scales as published would hide an error of attention."""
    made = codec("mimi-vae", channels)
    with torch.no_grad():
        for name, scale in made.named_parameters():
            if "layer_scale" in name:
                scale.fill_(0.7)
    return made


def fingerprint(made: PublishedCodec) -> Tensor:
    """A number for each tensor of weights; equal to rounding on every machine."""
    return torch.stack([t.abs().mean() for _, t in sorted(made.state_dict().items())])
