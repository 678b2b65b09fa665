"""`mimi-vae`: the continuous Mimi of Pocket TTS (Kyutai), 24 kHz, one latent of 32 numbers per 80 ms.

Convolutions bring the sound to 200 steps a second, a Transformer that sees the last 250 steps (1.25 s) looks at them,
and one more convolution makes one latent of 16 steps; the decoder is the mirror image. Published with CC BY 4.0
weights as `model.safetensors` of kyutai/pocket-tts, whose tensors `mimi.*` these are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...config import UNIT_MS, AudioConfig
from .codec import PublishedCodec, Tape
from .mimi_layers import Residual, SeaNet, StreamConv1d, StreamConvTranspose1d, Transformer

CHANNELS = 64  # published width of the first convolution
LATENT_DIM, LATENTS_PER_UNIT, SAMPLE_RATE = 32, 2, 24_000
HEADS, LAYERS, CONTEXT = 8, 2, 250
STRIDES = (4, 5, 6)
STEPS_PER_LATENT = 16


class _Down(nn.Module):
    """`downsample.conv`: one latent of 16 steps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        kernel = 2 * STEPS_PER_LATENT
        self.conv = StreamConv1d(width, LATENT_DIM, kernel, STEPS_PER_LATENT, bias=False, repeat=True)


class _Up(nn.Module):
    """`upsample.convtr`: 16 steps of one latent."""

    def __init__(self, width: int) -> None:
        super().__init__()
        kernel = 2 * STEPS_PER_LATENT
        self.convtr = StreamConvTranspose1d(width, width, kernel, STEPS_PER_LATENT, groups=width, bias=False)


class _Quantizer(nn.Module):
    """`quantizer.output_proj`: quantises nothing, the name is history."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.output_proj = nn.Conv1d(LATENT_DIM, width, 1, bias=False)


class MimiVae(PublishedCodec):
    """The family: SEANet, Transformer and one more convolution, and back."""

    def __init__(self, c: AudioConfig) -> None:
        super().__init__(LATENT_DIM)
        self.config = c
        base = c.codec_channels or CHANNELS
        width = 8 * base
        down: list[nn.Module] = [StreamConv1d(1, base, 7)]
        up: list[nn.Module] = []
        channels = base
        for stride in STRIDES:
            down += [Residual(channels), nn.ELU(), StreamConv1d(channels, 2 * channels, 2 * stride, stride)]
            up = [
                nn.ELU(),
                StreamConvTranspose1d(2 * channels, channels, 2 * stride, stride),
                Residual(channels),
                *up,
            ]
            channels *= 2
        self.encoder = SeaNet(*down, nn.ELU(), StreamConv1d(channels, width, 3))
        self.encoder_transformer = Transformer(width, HEADS, LAYERS, CONTEXT)
        self.downsample = _Down(width)
        self.quantizer = _Quantizer(width)
        self.upsample = _Up(width)
        self.decoder_transformer = Transformer(width, HEADS, LAYERS, CONTEXT)
        self.decoder = SeaNet(StreamConv1d(width, channels, 7), *up, nn.ELU(), StreamConv1d(base, 1, 3))

    def encode(self, media: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """pcm [B, U * 3840] -> latents [B, 2 U, 32], new state."""
        tape = Tape(state, media)
        steps = self.encoder_transformer(self.encoder(media.unsqueeze(1), tape), tape)
        latents = self.downsample.conv(steps, tape).transpose(1, 2)
        return (latents - self.latent_mean) / self.latent_scale, tape.close()

    def decode(self, latents: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """latents [B, 2 U, 32] -> pcm [B, U * 3840], new state."""
        tape = Tape(state, latents)
        own = latents * self.latent_scale + self.latent_mean
        steps = self.upsample.convtr(self.quantizer.output_proj(own.transpose(1, 2)), tape)
        pcm = self.decoder(self.decoder_transformer(steps, tape), tape)
        return pcm.squeeze(1).clamp(-1.0, 1.0), tape.close()

    def rest(self) -> Tensor:
        """Silence, as long as attention looks back."""
        steps_per_unit = LATENTS_PER_UNIT * STEPS_PER_LATENT
        units = -(-(CONTEXT - 1) // steps_per_unit)
        return torch.zeros(1, units * SAMPLE_RATE * UNIT_MS // 1000, device=self.latent_mean.device)

    def twin(self) -> MimiVae:
        return MimiVae(self.config)
