"""What a codec family is: media to latents and back, unit by unit, with the past in one flat state a direction.

A state is [B, S] float32, so that the serving runtime stacks and splits it without knowing what is inside; inside a
codec every layer takes its part of it in turn and puts back what the next unit needs (`Tape`).
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor, nn


class Tape:
    """The state of one direction during one call: layers `take` and `put` their parts in the order in which they run.

    Without a state the stream begins (`fresh`): what lies before is zeros, and a layer that begins differently asks.
    """

    def __init__(self, state: Tensor | None, like: Tensor) -> None:
        self.fresh = state is None
        self._state, self._like, self._offset = state, like, 0
        self._parts: list[Tensor] = []

    def take(self, *shape: int) -> Tensor:
        """The next part, [B, *shape]."""
        if self._state is None:
            return self._like.new_zeros(self._like.shape[0], *shape)
        start, self._offset = self._offset, self._offset + math.prod(shape)
        return self._state[:, start : self._offset].reshape(-1, *shape)

    def put(self, part: Tensor) -> None:
        """What the next unit takes here; of the shape that was taken."""
        self._parts.append(part.flatten(1))

    def close(self) -> Tensor:
        """The new state [B, S]."""
        return torch.cat(self._parts, dim=1)


class Codec(nn.Module):
    """A causal codec of one stream. Media are pcm [B, U * N] or frames [B, 4 U, H, W, 3]; latents [B, U * n, c].

    Any whole number of units may go through one call; how a stream is cut changes nothing beyond rounding.
    """

    def encode(self, media: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """pcm float32 in [-1, 1] or frames uint8 -> latents of about unit variance, new state. None: a fresh stream."""
        raise NotImplementedError

    def decode(self, latents: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Latents -> pcm in [-1, 1] or pixels in [0, 255], new state. None: a fresh stream."""
        raise NotImplementedError

    @property
    def encoder_size(self) -> int:
        """Floats of the encoder's state."""
        return self._sizes[0]

    @property
    def decoder_size(self) -> int:
        """Floats of the decoder's state."""
        return self._sizes[1]

    @property
    def _sizes(self) -> tuple[int, int]:
        raise NotImplementedError

    def start(self) -> tuple[Tensor, Tensor]:
        """Encoder and decoder state [S] of a session before its first unit."""
        device = next(self.parameters()).device
        return torch.zeros(self.encoder_size, device=device), torch.zeros(self.decoder_size, device=device)


class PublishedCodec(Codec):
    """A family with public weights: its parameters have the published names, `latent_mean` and `latent_scale` [c] of
    its own latents are beside them, and a session starts as if stillness had gone through it.

    Published streams begin unlike they go on (one frame for the first latent, masked attention). A start that lies
    behind that beginning lets every unit be like every other, so the clock never shifts.
    """

    latent_mean: Tensor
    latent_scale: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("latent_mean", torch.zeros(channels))
        self.register_buffer("latent_scale", torch.ones(channels))

    def rest(self) -> Tensor:
        """Stillness [1, ...] that a fresh encoder takes: as short as gets past the published beginning."""
        raise NotImplementedError

    def twin(self) -> PublishedCodec:
        """The same codec without its weights."""
        raise NotImplementedError

    @cached_property
    def _sizes(self) -> tuple[int, int]:
        # What a run on meta tensors puts on its tapes, so no second place states a size.
        with torch.device("meta"), torch.no_grad():
            encoder, decoder = self.twin().start()
        return encoder.numel(), decoder.numel()

    @torch.no_grad()
    def start(self) -> tuple[Tensor, Tensor]:
        latents, encoder = self.encode(self.rest(), None)
        _, decoder = self.decode(latents, None)
        return encoder[0], decoder[0]

    def draw(self, generator: torch.Generator) -> None:
        """Seeded random weights; norms and scales of layers keep what they begin with."""
        with torch.no_grad():
            for name, parameter in sorted(self.named_parameters()):
                if name.endswith("bias"):
                    parameter.zero_()
                elif parameter.dim() > 1 and not name.endswith("gamma"):
                    parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
