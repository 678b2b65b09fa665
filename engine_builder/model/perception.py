"""What the agent hears and sees: causal encoders of the user's audio and video with explicit state.

Either small convolutions that are trained together with the Transformer, or the encoder of the model's own codec and
a learned projection (`audio.perceive`, `video.perceive`). State is a flat vector a session, as in the codecs.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from ..config import CODEC_FRAMES_PER_UNIT, FRAMES_PER_UNIT, AudioConfig, VideoConfig
from .codecs.codec import Codec

AUDIO_KERNEL = 3
PIXEL_STRIDE = 16  # two convolutions of stride 4


def mel_filters(bands: int, bins: int, sample_rate: int) -> Tensor:
    """Triangular mel filters [bins, bands] (HTK scale: mel = 2595 log10(1 + f / 700))."""
    top = 2595.0 * math.log10(1.0 + sample_rate / 2 / 700.0)
    edges = 700.0 * (10.0 ** (torch.linspace(0.0, top, bands + 2, dtype=torch.float64) / 2595.0) - 1.0)
    frequency = torch.linspace(0.0, sample_rate / 2, bins, dtype=torch.float64)[:, None]
    rising = (frequency - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequency) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0.0).float()


class AudioEncoder(nn.Module):
    """50 Hz log-mel, then causal 1-D convolutions, then `perceive_tokens` tokens a unit."""

    tapes = False
    dft_cos: Tensor
    dft_sin: Tensor
    mel: Tensor

    def __init__(self, c: AudioConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = c
        window = 2 * c.hop
        bins = c.hop + 1
        n = torch.arange(window, dtype=torch.float64)
        hann = 0.5 - 0.5 * torch.cos(2 * math.pi * (n + 0.5) / window)
        angle = 2 * math.pi * n[:, None] * torch.arange(bins, dtype=torch.float64)[None, :] / window
        self.register_buffer("dft_cos", (hann[:, None] * torch.cos(angle)).float(), persistent=False)
        self.register_buffer("dft_sin", (hann[:, None] * torch.sin(angle)).float(), persistent=False)
        self.register_buffer("mel", mel_filters(c.mel_bands, bins, c.sample_rate), persistent=False)
        widths = [c.mel_bands] + [c.encoder_channels] * len(c.encoder_dilations)
        self.convs = nn.ModuleList(
            nn.Conv1d(a, b, AUDIO_KERNEL, dilation=dilation)
            for (a, b), dilation in zip(itertools.pairwise(widths), c.encoder_dilations, strict=True)
        )
        self.frames_per_token = CODEC_FRAMES_PER_UNIT // c.perceive_tokens
        self.out = nn.Linear(c.encoder_channels * self.frames_per_token, hidden_size)
        self.position = nn.Parameter(torch.zeros(c.perceive_tokens, hidden_size))

    @property
    def state_size(self) -> int:
        """Floats: one hop of samples and the last inputs that every convolution looks back to."""
        return self.config.hop + sum(conv.in_channels * _look_back(conv) for conv in self._conv_list())

    def start(self) -> Tensor:
        """State before the first unit: silence."""
        return torch.zeros(self.state_size)

    def _conv_list(self) -> list[nn.Conv1d]:
        return [conv for conv in self.convs if isinstance(conv, nn.Conv1d)]

    def forward(self, pcm: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """pcm [B, U * N] (whole units), state [B, state_size] -> e_audio [B, U * n_ea, d], new state."""
        hops = torch.cat((state[:, : self.config.hop], pcm), dim=1).view(len(pcm), -1, self.config.hop)
        percepts, kept = self.of_bands(self.bands(hops), state)
        return percepts, torch.cat((hops[:, -1], *kept), dim=1)

    def bands(self, hops: Tensor) -> Tensor:
        """hops [B, T + 1, hop] of samples -> log-mel [B, mel_bands, T], about [-2.3, 1.7] for speech in [-1, 1]."""
        frames = torch.cat((hops[:, :-1], hops[:, 1:]), dim=-1)
        power = (frames @ self.dft_cos).square() + (frames @ self.dft_sin).square()
        return (torch.log(power @ self.mel + 1e-4) * 0.25).transpose(1, 2)

    def of_bands(self, x: Tensor, state: Tensor) -> tuple[Tensor, list[Tensor]]:
        """log-mel [B, mel_bands, T] of whole units, state -> e_audio, what every convolution keeps."""
        batch, offset, kept = x.shape[0], self.config.hop, []
        for i, conv in enumerate(self._conv_list()):
            keep = _look_back(conv)
            size = conv.in_channels * keep
            x_in = torch.cat((state[:, offset : offset + size].view(batch, conv.in_channels, keep), x), dim=2)
            kept.append(x_in[:, :, -keep:].reshape(batch, size))
            offset += size
            y = nn.functional.silu(conv(x_in))
            x = y if i == 0 else x + y
        x = x.transpose(1, 2).reshape(batch, -1, self.frames_per_token * self.config.encoder_channels)
        units = x.shape[1] // self.config.perceive_tokens
        return self.out(x) + self.position.repeat(units, 1), kept


def _look_back(conv: nn.Conv1d) -> int:
    """Inputs before the present one that a causal convolution reads."""
    return (AUDIO_KERNEL - 1) * conv.dilation[0]


class VideoEncoder(nn.Module):
    """Strided convolutions per frame, one causal mix with the previous frame, then a pooled grid of tokens a unit."""

    tapes = False
    pool: Tensor

    def __init__(self, c: VideoConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = c
        self.conv1 = nn.Conv2d(3, c.encoder_channels, 4, stride=4)
        self.conv2 = nn.Conv2d(c.encoder_channels, c.encoder_channels, 4, stride=4)
        self.mix = nn.Conv2d(2 * c.encoder_channels, c.encoder_channels, 1)
        self.out = nn.Linear(FRAMES_PER_UNIT * c.encoder_channels, hidden_size)
        self.position = nn.Parameter(torch.zeros(c.perceive_tokens, hidden_size))
        places = c.height // PIXEL_STRIDE, c.width // PIXEL_STRIDE
        self.register_buffer("pool", _grid_pool(places, c.perceive_grid), persistent=False)

    @property
    def state_size(self) -> int:
        """Floats: the convolved features of the last frame."""
        return self.config.encoder_channels * self.pool.shape[1]

    def start(self) -> Tensor:
        return torch.zeros(self.state_size)

    def forward(self, frames: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """frames uint8 [B, 4 U, H, W, 3], state [B, state_size] -> e_video [B, U * n_ev, d], new state."""
        c = self.config
        batch, count, cells = frames.shape[0], frames.shape[1], self.pool.shape[1]
        x = frames.to(self.out.weight.dtype).permute(0, 1, 4, 2, 3) / 127.5 - 1.0
        x = nn.functional.silu(self.conv1(x.reshape(batch * count, 3, c.height, c.width)))
        x = nn.functional.silu(self.conv2(x)).view(batch, count, c.encoder_channels, cells)
        before = torch.cat((state.view(batch, 1, c.encoder_channels, cells), x[:, :-1]), dim=1)
        pair = torch.cat((before, x), dim=2).view(batch * count, 2 * c.encoder_channels, cells, 1)
        mixed = nn.functional.silu(self.mix(pair)).view(batch, count, c.encoder_channels, cells)
        pooled = mixed @ self.pool.T  # [B, 4 U, C, n_ev]
        tokens = pooled.view(batch, -1, FRAMES_PER_UNIT, c.encoder_channels, c.perceive_tokens)
        tokens = tokens.permute(0, 1, 4, 2, 3).reshape(batch, -1, FRAMES_PER_UNIT * c.encoder_channels)
        units = count // FRAMES_PER_UNIT
        return self.out(tokens) + self.position.repeat(units, 1), x[:, -1].reshape(batch, -1)


class LatentEncoder(nn.Module):
    """The codec's own encoder, then a projection of its latents, pooled to `tokens` a unit by `pool` [tokens, n]."""

    pool: Tensor

    def __init__(self, codec: Codec, latent_dim: int, hidden_size: int, pool: Tensor) -> None:
        super().__init__()
        # In a list: its weights belong to the model's codec, under the names that they have there.
        self._codec = [codec]
        self.tapes = codec.tapes
        self.out = nn.Linear(latent_dim, hidden_size)
        self.position = nn.Parameter(torch.zeros(pool.shape[0], hidden_size))
        self.register_buffer("pool", pool, persistent=False)

    @property
    def state_size(self) -> int:
        return self._codec[0].encoder_size

    def start(self) -> Tensor:
        return self._codec[0].start()[0]

    def forward(self, media: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """pcm or frames of whole units, state [B, state_size] -> e [B, U * tokens, d], new state."""
        latents, state = self._codec[0].encode(media, state)
        units = latents.shape[1] // self.pool.shape[1]
        pooled = self.pool @ latents.reshape(-1, units, self.pool.shape[1], latents.shape[2])
        return self.out(pooled.flatten(1, 2)) + self.position.repeat(units, 1), state


def audio_encoder(c: AudioConfig, hidden_size: int, codec: Codec) -> AudioEncoder | LatentEncoder:
    """The encoder of the user's sound that a config names."""
    if c.perceive == "conv":
        return AudioEncoder(c, hidden_size)
    return LatentEncoder(codec, c.latent_dim, hidden_size, torch.eye(c.tokens))


def video_encoder(c: VideoConfig, hidden_size: int, codec: Codec) -> VideoEncoder | LatentEncoder:
    """The encoder of the user's picture that a config names."""
    if c.perceive == "conv":
        return VideoEncoder(c, hidden_size)
    return LatentEncoder(codec, c.latent_dim, hidden_size, _grid_pool(c.grid, c.perceive_grid))


def _grid_pool(places: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    """Averages a grid of places into a grid of cells, [cells, places], rows first."""
    rows, columns = _pool(places[0], cells[0]), _pool(places[1], cells[1])
    return torch.einsum("ry,cx->rcyx", rows, columns).reshape(math.prod(cells), math.prod(places))


def _pool(size: int, cells: int) -> Tensor:
    """Averages `size` positions into `cells` adaptive bins, [cells, size] (the bins of `adaptive_avg_pool`)."""
    weights = torch.zeros(cells, size)
    for cell in range(cells):
        start, stop = cell * size // cells, -(-(cell + 1) * size // cells)
        weights[cell, start:stop] = 1.0 / (stop - start)
    return weights
