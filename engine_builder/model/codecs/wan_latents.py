"""Latents of the Wan VAE as tokens: 16 channels per 4 frames x 8 x 8 pixels, a square of neighbours to a token."""

from __future__ import annotations

from torch import Tensor

from ...config import WAN_CHANNELS, WAN_STRIDE, VideoConfig


def to_tokens(latents: Tensor, c: VideoConfig) -> Tensor:
    """[B, U, 16, H / 8, W / 8] -> [B, U * n_v, latent_dim], rows of tokens first; in a token, channel by channel."""
    rows, columns = c.grid
    side = c.stride // WAN_STRIDE
    x = latents.reshape(latents.shape[0], -1, WAN_CHANNELS, rows, side, columns, side)
    return x.permute(0, 1, 3, 5, 2, 4, 6).reshape(latents.shape[0], -1, c.latent_dim)


def from_tokens(tokens: Tensor, c: VideoConfig) -> Tensor:
    """The inverse."""
    rows, columns = c.grid
    side = c.stride // WAN_STRIDE
    x = tokens.reshape(tokens.shape[0], -1, rows, columns, WAN_CHANNELS, side, side)
    return x.permute(0, 1, 4, 2, 5, 3, 6).reshape(tokens.shape[0], -1, WAN_CHANNELS, rows * side, columns * side)
