"""Inputs as each step takes them, made up: for measurements and for the first calls on a device."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from engine_builder.config import FRAMES_PER_UNIT, ModelConfig
from engine_builder.layout import UnitLayout, rope_tables

Inputs = dict[str, np.ndarray]


def step_inputs(config: ModelConfig, states: Mapping[str, int], name: str, batch: int, history: int) -> Inputs:
    """Inputs of a call of `name` (a step of `costs.STEPS`) with `batch` rows after `history` tokens a row; page tables
    and pools are not among them."""
    audio, video, backbone = config.audio, config.video, config.backbone
    rng = np.random.default_rng(0)

    def latents(rows: int) -> tuple[np.ndarray, np.ndarray]:
        shapes = (batch, rows * video.tokens, video.latent_dim), (batch, rows * audio.tokens, audio.latent_dim)
        return rng.standard_normal(shapes[0], dtype=np.float32), rng.standard_normal(shapes[1], dtype=np.float32)

    if name in ("perceive", "encode"):
        return {
            "pcm": rng.standard_normal((batch, audio.unit_samples), dtype=np.float32) * np.float32(0.1),
            "frames": rng.integers(0, 256, (batch, FRAMES_PER_UNIT, video.height, video.width, 3), dtype=np.uint8),
            "state": np.zeros((batch, states[name]), np.float32),
        }
    if name == "render":
        z_video, z_audio = latents(1)
        return {"z_video": z_video, "z_audio": z_audio, "state": np.zeros((batch, states["render"]), np.float32)}

    tokens = {"perform": config.latent_tokens, "think": UnitLayout.of(config).slot_offset, "slot": 1}[name]
    cos, sin = rope_tables(backbone, np.tile(np.arange(history, history + tokens), (batch, 1)))
    rope = {"rope_cos": cos, "rope_sin": sin}
    if name == "perform":
        x_video, x_audio = latents(1)
        own = {"x_video": x_video, "x_audio": x_audio, "tau": np.full(batch, 0.5, np.float32)}
    else:
        block = int(name == "think")
        z_video, z_audio = latents(block)
        hidden = backbone.hidden_size
        own = {
            "z_video": z_video,
            "z_audio": z_audio,
            "e_video": np.zeros((batch, block * video.perceive_tokens, hidden), np.float32),
            "e_audio": np.zeros((batch, block * audio.perceive_tokens, hidden), np.float32),
            "ids": np.full((batch, 1 + block * config.language.text_tokens), config.language.query_id, np.int64),
            "block_mask": np.ones((batch, tokens, tokens), bool),
        }
    return {**own, **rope}
