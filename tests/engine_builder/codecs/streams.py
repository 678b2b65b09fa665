"""A codec unit by unit, beside the same in one call and beside an oracle."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from families import SIZE, latents, media
from oracles import Oracle
from torch import Tensor

from engine_builder.model.codecs import PublishedCodec

DIRECTIONS = ("encode", "decode")


@dataclass(frozen=True)
class Stream:
    """One direction of a codec, what goes through it, and what has gone through before its first unit."""

    made: PublishedCodec
    direction: str
    before: Tensor
    before_out: int  # how long is what a fresh stream makes of it
    whole: Tensor
    start: Tensor
    range: float  # of the outputs: 255 for pixels

    def call(self, part: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs of the order of 1, new state."""
        out, state = getattr(self.made, self.direction)(part, state)
        return out / self.range, state

    def offline(self) -> tuple[Tensor, Tensor]:
        return self.call(self.whole, self.start)

    def by_units(self, units: int) -> tuple[Tensor, Tensor]:
        state, parts = self.start, []
        for part in self.whole.chunk(units, dim=1):
            out, state = self.call(part, state)
            parts.append(out)
        return torch.cat(parts, dim=1), state

    def expected(self, oracle: Oracle) -> Tensor:
        """What an oracle makes of the units, given the whole stream from its published beginning."""
        return getattr(oracle, self.direction)(torch.cat((self.before, self.whole), dim=1))[:, self.before_out :]


@torch.no_grad()
def stream(
    made: PublishedCodec,
    family: str,
    direction: str,
    units: int,
    batch: int = 1,
    seed: int = 0,
    size: tuple[int, int] = SIZE,
) -> Stream:
    encoder, decoder = (state.expand(batch, -1) for state in made.start())
    rest = made.rest()
    rest_latents = made.encode(rest, None)[0]
    if direction == "encode":
        whole = media(family, units, batch, seed, size)
        return Stream(made, direction, rest, rest_latents.shape[1], whole, encoder, 1.0)
    whole = latents(family, units, batch, seed, size)
    if family == "mimi-vae":  # sound of the latents' own size would be clipped
        return Stream(made, direction, rest_latents, rest.shape[1], 0.3 * whole, decoder, 1.0)
    return Stream(made, direction, rest_latents, rest.shape[1], whole, decoder, 255.0)
