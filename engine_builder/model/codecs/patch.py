"""The agent's picture as continuous latents: a 3-D patch transform with a causal refinement.

One latent token stands for 4 frames x stride x stride pixels. A linear transform (fitted on data, or the low
frequencies of a 3-D DCT when untrained) gives the picture; two convolutions that also see the previous frame refine
it. The last unrefined frame is the decoder's only state.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...config import FRAMES_PER_UNIT, VideoConfig
from .codec import Codec


def dct_basis(frames: int, size: int, channels: int, count: int) -> Tensor:
    """The `count` lowest-frequency orthonormal 3-D DCT-II atoms, [count, frames * size * size * channels].

    Ordered by t + y + x frequency; colour channels share an atom's turn. Layout of an atom: (t, y, x, channel).
    """

    def dct(n: int, k: int) -> Tensor:
        i = torch.arange(n, dtype=torch.float64)
        return torch.cos(math.pi / n * (i + 0.5) * k) * math.sqrt((1.0 if k == 0 else 2.0) / n)

    reach = size if size < 12 else 12  # enough low frequencies for any latent width in use
    order = sorted(
        ((t, y, x) for t in range(frames) for y in range(reach) for x in range(reach)),
        key=lambda f: (f[0] * 2 + f[1] + f[2], f),
    )
    atoms = []
    for t, y, x in order:
        atom = dct(frames, t)[:, None, None] * dct(size, y)[None, :, None] * dct(size, x)[None, None, :]
        for channel in range(channels):
            full = torch.zeros(frames, size, size, channels, dtype=torch.float64)
            full[..., channel] = atom
            atoms.append(full.flatten())
            if len(atoms) == count:
                return torch.stack(atoms).float()
    raise ValueError(f"latent_dim: at most {len(atoms)} DCT atoms for stride {size}, got {count}")


class Patch(Codec):
    """Parameters (set by fitting): `mean` [n_v, patch_dim], `basis` [latent_dim, patch_dim] with orthonormal rows,
    `latent_scale` [n_v, latent_dim]; then the refinement convolutions. Pixels are handled in [-1, 1]."""

    def __init__(self, c: VideoConfig) -> None:
        super().__init__()
        self.config = c
        self.mean = nn.Parameter(torch.zeros(c.tokens, c.patch_dim))
        self.basis = nn.Parameter(torch.zeros(c.latent_dim, c.patch_dim))
        self.latent_scale = nn.Parameter(torch.ones(c.tokens, c.latent_dim))
        self.refine_in = nn.Conv2d(6, c.refine_channels, 3, padding=1)
        self.refine_out = nn.Conv2d(c.refine_channels, 3, 3, padding=1)
        self.reset()

    @property
    def _sizes(self) -> tuple[int, int]:
        return 0, 3 * self.config.height * self.config.width  # the encoder sees each unit alone

    def reset(self) -> None:
        c = self.config
        with torch.no_grad():
            self.basis.copy_(dct_basis(FRAMES_PER_UNIT, c.stride, 3, c.latent_dim))
            # An orthonormal transform of patch_dim pixels of order 0.5 has coefficients of order 0.5 sqrt(patch_dim),
            # most of it in few atoms; a third of that keeps latents of order 1.
            self.latent_scale.fill_(math.sqrt(c.patch_dim) / 6)
            self.refine_out.weight.mul_(0.1)
            if self.refine_out.bias is not None:
                self.refine_out.bias.zero_()

    def encode(self, media: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """frames uint8 [B, 4 U, H, W, 3] -> latents [B, U * n_v, latent_dim], the empty state."""
        c = self.config
        rows, columns = c.grid
        batch, units = media.shape[0], media.shape[1] // FRAMES_PER_UNIT
        x = media.to(self.basis.dtype) / 127.5 - 1.0
        x = x.view(batch, units, FRAMES_PER_UNIT, rows, c.stride, columns, c.stride, 3)
        x = x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(batch, units, c.tokens, c.patch_dim)
        latents = (x - self.mean) @ self.basis.T / self.latent_scale
        return latents.reshape(batch, units * c.tokens, c.latent_dim), latents.new_zeros(batch, 0)

    def decode_linear(self, latents: Tensor) -> Tensor:
        """latents [B, U * n_v, latent_dim] -> unrefined frames [B, 4 U, 3, H, W] around [-1, 1]."""
        c = self.config
        rows, columns = c.grid
        batch, units = latents.shape[0], latents.shape[1] // c.tokens
        z = latents.view(batch, units, c.tokens, c.latent_dim) * self.latent_scale
        x = (z @ self.basis + self.mean).view(batch, units, rows, columns, FRAMES_PER_UNIT, c.stride, c.stride, 3)
        x = x.permute(0, 1, 4, 7, 2, 5, 3, 6)
        return x.reshape(batch, units * FRAMES_PER_UNIT, 3, c.height, c.width)

    def decode(self, latents: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """latents [B, U * n_v, latent_dim], state [B, 3 H W] -> frames [B, 4 U, H, W, 3] in [0, 255], new state."""
        c = self.config
        linear = self.decode_linear(latents)
        batch, count = linear.shape[0], linear.shape[1]
        state = linear.new_zeros(batch, self.decoder_size) if state is None else state
        previous = torch.cat((state.view(batch, 1, 3, c.height, c.width), linear[:, :-1]), dim=1)
        pair = torch.cat((previous, linear), dim=2).view(batch * count, 6, c.height, c.width)
        residual = self.refine_out(nn.functional.silu(self.refine_in(pair)))
        frames = linear + residual.view(batch, count, 3, c.height, c.width)
        pixels = (frames.permute(0, 1, 3, 4, 2).clamp(-1.0, 1.0) + 1.0) * 127.5
        return pixels, linear[:, -1].reshape(batch, -1)
