"""The agent's voice as continuous latents: a causal MDCT codec with a learned linear latent.

One unit is 8 MDCT frames (hop 20 ms). Each latent token covers 8 / tokens consecutive frames: their coefficients,
weighted per bin, are projected onto `latent_dim` directions. The synthesis overlap (one hop) is the decoder's only
state, so PCM leaves 20 ms after the frame it belongs to and nothing ever looks ahead.

MDCT with the sine window: Princen & Bradley 1986; y[f] = sqrt(2/M) sum_n w[n] x[n] cos(pi/M (n + 1/2 + M/2)(f + 1/2)).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...config import CODEC_FRAMES_PER_UNIT, AudioConfig
from .codec import Codec


def mdct_matrix(hop: int) -> Tensor:
    """Windowed MDCT basis [2 * hop, hop]; its transpose, overlap-added, inverts it (time-domain alias cancellation)."""
    n = torch.arange(2 * hop, dtype=torch.float64)
    f = torch.arange(hop, dtype=torch.float64)
    window = torch.sin(math.pi / (2 * hop) * (n + 0.5))
    basis = torch.cos(math.pi / hop * (n[:, None] + 0.5 + hop / 2) * (f[None, :] + 0.5))
    return (window[:, None] * basis * math.sqrt(2.0 / hop)).float()


class Mdct(Codec):
    """Encodes and decodes PCM at one latent token per 8 / tokens MDCT frames.

    Parameters (set by fitting, see `engine_builder.training`): `bin_scale` [hop] whitens a bin before projection,
    `mean` [F * hop], `basis` [latent_dim, F * hop] with orthonormal rows, `latent_scale` [latent_dim] brings every
    latent to unit variance. F = frames per token.
    """

    mdct: Tensor

    def __init__(self, c: AudioConfig) -> None:
        super().__init__()
        self.config = c
        self.frames = CODEC_FRAMES_PER_UNIT // c.tokens
        width = self.frames * c.hop
        self.bin_scale = nn.Parameter(torch.ones(c.hop))
        self.mean = nn.Parameter(torch.zeros(width))
        self.basis = nn.Parameter(torch.zeros(c.latent_dim, width))
        self.latent_scale = nn.Parameter(torch.ones(c.latent_dim))
        self.register_buffer("mdct", mdct_matrix(c.hop), persistent=False)
        self.reset()

    @property
    def _sizes(self) -> tuple[int, int]:
        return self.config.hop, self.config.hop

    def reset(self) -> None:
        """An untrained codec keeps the lowest bins of every frame: a low-pass that needs no data."""
        bins = self.config.latent_dim // self.frames
        with torch.no_grad():
            self.basis.zero_()
            for frame in range(self.frames):
                for b in range(bins):
                    self.basis[frame * bins + b, frame * self.config.hop + b] = 1.0
            # Speech coefficients are of the order of 0.1; latents should be of the order of 1.
            self.latent_scale.fill_(0.1)

    def coefficients(self, pcm: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """pcm [B, U * N] (whole units), state [B, hop] (last samples) -> MDCT [B, 8 U, hop], new state."""
        hop = self.config.hop
        hops = torch.cat((state, pcm), dim=1).view(pcm.shape[0], -1, hop)
        pairs = torch.cat((hops[:, :-1], hops[:, 1:]), dim=-1)
        return pairs @ self.mdct, hops[:, -1]

    def encode(self, media: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """pcm [B, U * N], state [B, hop] -> latents [B, U * tokens, latent_dim], new state."""
        coefficients, state = self.coefficients(media, self._past(media, state))
        blocks = (coefficients / self.bin_scale).reshape(media.shape[0], -1, self.mean.shape[0]) - self.mean
        return blocks @ self.basis.T / self.latent_scale, state

    def decode(self, latents: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """latents [B, U * tokens, latent_dim], state [B, hop] (overlap) -> pcm [B, U * N] in [-1, 1], new state."""
        batch, hop = latents.shape[0], self.config.hop
        blocks = (latents * self.latent_scale) @ self.basis + self.mean
        coefficients = blocks.reshape(batch, -1, hop) * self.bin_scale
        windows = coefficients @ self.mdct.T
        head, tail = windows[..., :hop], windows[..., hop:]
        overlap = torch.cat((self._past(latents, state).unsqueeze(1), tail[:, :-1]), dim=1)
        pcm = (head + overlap).reshape(batch, -1)
        return pcm.clamp(-1.0, 1.0), tail[:, -1]

    def _past(self, like: Tensor, state: Tensor | None) -> Tensor:
        return like.new_zeros(like.shape[0], self.config.hop) if state is None else state
