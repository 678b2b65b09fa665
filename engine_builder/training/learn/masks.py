"""Holes in what the ears hear while they learn, so that no word hangs on one band or one moment.

SpecAugment (Park et al. 2019, arXiv:1904.08779) without its time warp: a random band of frequencies and a random moment
of the log-mel spectrogram are wiped out, each in some of the examples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine_builder.model.perception import AudioEncoder, LatentEncoder

from .devices import device_of

_BANDS, _BANDS_SHARE = 8, 0.6  # widest hole, share of examples
_FRAMES, _FRAMES_SHARE = 6, 0.5  # of 20 ms


def listen(encoder: AudioEncoder | LatentEncoder, pcm: Tensor, generator: torch.Generator) -> Tensor:
    """pcm [B, U * N] from a session's start -> e_audio [B, U * n_ea, d], heard through masks, where the encoder is."""
    pcm = pcm.to(device_of(encoder))
    state = pcm.new_zeros(len(pcm), encoder.state_size)
    if isinstance(encoder, LatentEncoder):
        return encoder(pcm, state)[0]
    hop = encoder.config.hop
    bands = encoder.bands(torch.cat((state[:, :hop], pcm), dim=1).view(len(pcm), -1, hop))
    return encoder.of_bands(masked(bands, generator), state)[0]


def masked(bands: Tensor, generator: torch.Generator) -> Tensor:
    """Log-mel [B, bands, T] with holes: a band becomes the mean of its frame, a moment the quietest of its band."""
    across = _hole(bands.shape[0], bands.shape[1], _BANDS, _BANDS_SHARE, generator)[:, :, None].to(bands.device)
    bands = torch.where(across, bands.mean(dim=1, keepdim=True), bands)
    along = _hole(bands.shape[0], bands.shape[2], _FRAMES, _FRAMES_SHARE, generator)[:, None, :].to(bands.device)
    return torch.where(along, bands.amin(dim=2, keepdim=True), bands)


def _hole(batch: int, size: int, widest: int, share: float, generator: torch.Generator) -> Tensor:
    """bool [B, size]: one run of up to `widest` places in `share` of the rows."""
    width = torch.randint(1, widest + 1, (batch, 1), generator=generator)
    start = (torch.rand(batch, 1, generator=generator) * (size - width + 1)).long()
    place = torch.arange(size)[None, :]
    chosen = torch.rand(batch, 1, generator=generator) < share
    return (place >= start) & (place < start + width) & chosen
