"""What the thinker holds of one conversation, and the unit clock that keeps its stages in order."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from engine_builder.config import ModelConfig

from ..engines.tokenizer import TextStream
from ..kv.pages import PageTable
from ..messages import Float32, SessionError
from ..validate import MAX_QUEUED_TEXT

Rope = tuple[Float32, Float32]  # cos and sin [1, T, D / 2] of a pass of T tokens


class UnitRope(NamedTuple):
    """RoPE of the passes of one unit, as they take it."""

    unit: int
    block: Rope
    slots: list[Rope]  # T = 1


@dataclass(eq=False)
class ThinkerSession:
    """Pages, codec states and the last latents of one session. The counters name the unit each stage finished last.

    `failure` is set once the history was touched and the unit could not be completed: such a session only closes.
    """

    id: str
    epoch: int
    seed: int
    prompt: list[int]
    table: PageTable
    text_stream: TextStream
    encoder_state: Float32  # [Sp]
    z_video: Float32  # z of the unit before `thought`, [n_v, c_v]
    z_audio: Float32  # [n_a, c_a]
    e_video: Float32  # e of unit `perceived`, [n_ev, d]
    e_audio: Float32  # [n_ea, d]
    typed: deque[int] = field(default_factory=deque)  # at most MAX_QUEUED_TEXT
    ready: bool = False  # the prompt is in the history
    perceived: int = -1
    thought: int = -1
    perceive_ms: float = 0.0
    rope: UnitRope | None = None  # of the unit at hand or of the next one, made beforehand
    failure: SessionError | None = None

    @classmethod
    def new(
        cls,
        config: ModelConfig,
        state_sizes: dict[str, int],
        *,
        id: str,
        epoch: int,
        seed: int,
        prompt: list[int],
        table: PageTable,
        text_stream: TextStream,
    ) -> ThinkerSession:
        """A session before its first unit: all states and z_{-1} are zeros (DESIGN 3)."""

        def zeros(*shape: int) -> Float32:
            return np.zeros(shape, dtype=np.float32)

        v, a, d = config.video, config.audio, config.backbone.hidden_size
        return cls(
            id=id,
            epoch=epoch,
            seed=seed,
            prompt=prompt,
            table=table,
            text_stream=text_stream,
            encoder_state=zeros(state_sizes["perceive"]),
            z_video=zeros(v.tokens, v.latent_dim),
            z_audio=zeros(a.tokens, a.latent_dim),
            e_video=zeros(v.perceive_tokens, d),
            e_audio=zeros(a.perceive_tokens, d),
        )

    @property
    def origin(self) -> int:
        """RoPE position at which unit 0 begins: the number of prompt tokens."""
        return len(self.prompt)

    def check_perceive(self, unit: int) -> None:
        """ValueError unless `unit` is the one to perceive: e has one place, so think(unit - 1) comes first."""
        _expect("perceive", unit, self.perceived + 1)
        _expect_stage("perceive", unit, "think", self.thought, unit - 1)

    def check_think(self, unit: int) -> None:
        """ValueError unless e of `unit` is here."""
        _expect("think", unit, self.thought + 1)
        _expect_stage("think", unit, "perceive", self.perceived, unit)

    def queue_text(self, ids: list[int]) -> None:
        """Appends typed text; ValueError if more would wait than MAX_QUEUED_TEXT tokens."""
        room = MAX_QUEUED_TEXT - len(self.typed)
        if len(ids) > room:
            raise ValueError(f"text: expected at most {room} more tokens ({len(self.typed)} wait), got {len(ids)}")
        self.typed.extend(ids)

    def take_text(self, count: int) -> list[int]:
        """Up to `count` typed tokens for the unit at hand; the rest waits for later units."""
        return [self.typed.popleft() for _ in range(min(count, len(self.typed)))]


def _expect(stage: str, unit: int, expected: int) -> None:
    if unit != expected:
        raise ValueError(f"unit: expected {expected}, the next one to {stage}, got {unit}")


def _expect_stage(stage: str, unit: int, before: str, done: int, needed: int) -> None:
    if done < needed:
        raise ValueError(f"unit: {stage} {unit} expected {before} {needed} before it, got {before} up to {done}")
