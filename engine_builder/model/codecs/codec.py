"""What a codec family is: media to latents and back, unit by unit, with the past in one flat state a direction.

A state is [B, S] float32, so that the serving runtime stacks and splits it without knowing what is inside; inside a
codec every layer takes its part of it in turn and puts back what the next unit needs (`Tape`). On a GPU states may stay
where they lie instead (`Kept`): the Wan VAE's are gigabytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn


class Kept:
    """Columns of a slab [N, S] of states, of which the sessions of a call are `rows` int64 [B]. Layers read and write
    their own parts there, so no state is moved as a whole. For a `PublishedCodec` it stands where a state would."""

    def __init__(self, slab: Tensor, rows: Tensor, witnesses: list[Tensor] | None = None) -> None:
        self._slab, self._rows = slab, rows
        self._witnesses = [] if witnesses is None else witnesses

    def part(self, start: int, stop: int) -> Kept:
        return Kept(self._slab[:, start:stop], self._rows, self._witnesses)

    def read(self) -> Tensor:
        """[B, S], a copy."""
        return self._slab.index_select(0, self._rows)

    def write(self, state: Tensor) -> None:
        """state [B, S]."""
        self._slab.index_copy_(0, self._rows, state)
        if state.shape[1]:
            low, high = torch.aminmax(state, dim=1)
            self._witnesses.append(low + high)

    def witness(self) -> Tensor:
        """[B]: a finite number for each row that was written with finite numbers only."""
        return torch.stack(self._witnesses).sum(dim=0)


def over(run: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], tapes: bool, x: Tensor, state: Kept) -> Tensor:
    """What `run(x, state)` gives over a kept state. Without a tape in it, the state, a small one, is copied."""
    if tapes:
        return run(x, cast(Tensor, state))[0]
    out, new = run(x, state.read())
    state.write(new)
    return out


class Tape:
    """The state of one direction during one call: layers `take` and `put` their parts in the order in which they run.

    Without a state the stream begins (`fresh`): what lies before is zeros, and a layer that begins differently asks.
    """

    def __init__(self, state: Tensor | Kept | None, like: Tensor) -> None:
        self.fresh = state is None
        self._state, self._like, self._offset = state, like, 0
        self._parts: list[Tensor] = []
        self._written = 0

    def take(self, *shape: int) -> Tensor:
        """The next part, [B, *shape]."""
        if self._state is None:
            return self._like.new_zeros(self._like.shape[0], *shape)
        start, self._offset = self._offset, self._offset + math.prod(shape)
        if isinstance(self._state, Kept):
            return self._state.part(start, self._offset).read().reshape(-1, *shape)
        return self._state[:, start : self._offset].reshape(-1, *shape)

    def put(self, part: Tensor) -> None:
        """What the next unit takes here; of the shape that was taken."""
        flat = part.flatten(1)
        if isinstance(self._state, Kept):
            start, self._written = self._written, self._written + flat.shape[1]
            self._state.part(start, self._written).write(flat)
        else:
            self._parts.append(flat)

    def close(self) -> Tensor:
        """The new state [B, S]; a kept one was written by and by."""
        return cast(Tensor, self._state) if isinstance(self._state, Kept) else torch.cat(self._parts, dim=1)


class Codec(nn.Module):
    """A causal codec of one stream. Media are pcm [B, U * N] or frames [B, 4 U, H, W, 3]; latents [B, U * n, c].

    Any whole number of units may go through one call; how a stream is cut changes nothing beyond rounding.
    """

    tapes = False  # whether its state goes through a `Tape`, and may be `Kept`

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

    tapes = True
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
