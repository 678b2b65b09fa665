"""Where each token of a unit stands: RoPE positions and the order inside a context block (DESIGN 3).

Every unit owns a fixed span of `ModelConfig.unit_positions` positions, whatever number of typed-text and slot tokens it
really uses. So the position of any token follows from its unit and its role alone: the performer can start before the
slots of a unit are counted, and two conversations with different text stay aligned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .config import BackboneConfig, ModelConfig

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class UnitLayout:
    """Offsets of the parts of one unit. `origin` is the number of prompt tokens, which take positions 0..origin-1."""

    video_latents: int
    audio_latents: int
    video_perceived: int
    audio_perceived: int
    text: int
    slots: int

    @classmethod
    def of(cls, config: ModelConfig) -> UnitLayout:
        return cls(
            video_latents=config.video.tokens,
            audio_latents=config.audio.tokens,
            video_perceived=config.video.perceive_tokens,
            audio_perceived=config.audio.perceive_tokens,
            text=config.language.text_tokens,
            slots=config.language.slots,
        )

    @property
    def latents(self) -> int:
        return self.video_latents + self.audio_latents

    @property
    def text_offset(self) -> int:
        return self.latents + self.video_perceived + self.audio_perceived

    @property
    def query_offset(self) -> int:
        return self.text_offset + self.text

    @property
    def slot_offset(self) -> int:
        return self.query_offset + 1

    @property
    def span(self) -> int:
        """Positions of one unit; equals `ModelConfig.unit_positions`."""
        return self.slot_offset + self.slots

    def block_positions(self, origin: int, unit: int) -> Positions:
        """Positions [block_tokens] of the think pass of `unit`: z^v, z^a, e^v, e^a, text (padded), query."""
        start = origin + unit * self.span
        return np.arange(start, start + self.slot_offset, dtype=np.int64)

    def slot_position(self, origin: int, unit: int, slot: int) -> int:
        """Position of the emitted token `s_unit^slot`."""
        return origin + unit * self.span + self.slot_offset + slot

    def noisy_positions(self, origin: int, unit: int) -> Positions:
        """Positions [latents] of the noisy z_unit: those that its clean latents get in the block of unit + 1."""
        start = origin + (unit + 1) * self.span
        return np.arange(start, start + self.latents, dtype=np.int64)

    def committed_tokens(self, text_count: int) -> NDArray[np.int64]:
        """Indices into a think pass whose K/V is kept: everything but the padding of the typed text."""
        text_end = self.text_offset + text_count
        return np.concatenate([np.arange(text_end, dtype=np.int64), np.array([self.query_offset], dtype=np.int64)])


def pages_of(tokens: int, page_tokens: int) -> int:
    return -(-tokens // page_tokens)


def window_pages(pinned: int, rolling: int, page_tokens: int) -> int:
    """The most pages of a session that keeps `pinned` first tokens and a window of `rolling` last ones, which may begin
    anywhere in its first page."""
    return pages_of(pinned, page_tokens) + pages_of(rolling + page_tokens - 1, page_tokens)


def rope_tables(
    backbone: BackboneConfig, positions: Positions | Sequence[int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """cos and sin [..., head_dim / 2] of RoPE (Su et al. 2021, arXiv 2104.09864) for integer positions.

    Computed in float64: at position 10^6 a float32 product would be off by 0.06 rad in the fastest channel.
    """
    exponent = np.arange(0, backbone.head_dim, 2, dtype=np.float64) / backbone.head_dim
    angle = np.asarray(positions, dtype=np.float64)[..., None] * backbone.rope_theta**-exponent
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
