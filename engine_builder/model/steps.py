"""The four step functions that are exported and served (DESIGN 3), and `encode`, which a persona's references take.

Each is a module over the shared `DuplexModel` with tensor-only inputs and outputs in a fixed order. History arrives
as pages: the KV pool [L, pages, page, G, D] and, per row, the ids of its pages and the visible range of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import FRAMES_PER_UNIT, ModelConfig
from .backbone import KV
from .codecs.codec import Kept, over
from .duplex import DuplexModel, velocity


def gather_history(page_table: Tensor, page_range: Tensor, k_pool: Tensor, v_pool: Tensor) -> tuple[list[KV], Tensor]:
    """Collects each row's pages: per layer K, V [B, P * page, G, D], and which tokens are visible, bool [B, P * page].

    page_table int64 [B, P]; page_range int64 [B, P, 2]: token j of a page counts iff start <= j < stop. The pool of a
    layer is addressed as rows of one flat array, so that only the listed pages are ever read.
    """
    layers, pages, page, groups, size = k_pool.shape
    batch = page_table.shape[0]
    flat_k = k_pool.reshape(layers * pages, page, groups, size)
    flat_v = v_pool.reshape(layers * pages, page, groups, size)
    histories = []
    for layer in range(layers):
        rows = (page_table + layer * pages).reshape(-1)
        histories.append(
            (
                flat_k.index_select(0, rows).reshape(batch, -1, groups, size),
                flat_v.index_select(0, rows).reshape(batch, -1, groups, size),
            )
        )
    token = torch.arange(page, dtype=torch.int64)
    visible = (token >= page_range[..., :1]) & (token < page_range[..., 1:])
    return histories, visible.reshape(batch, -1)


class PerceiveStep(nn.Module):
    """pcm [B, N], frames uint8 [B, 4, H, W, 3], state [B, Sp] -> e_audio, e_video, state_out."""

    def __init__(self, model: DuplexModel) -> None:
        super().__init__()
        self.model = model
        self.audio_state = model.audio_encoder.state_size

    @property
    def state_size(self) -> int:
        return self.audio_state + self.model.video_encoder.state_size

    def forward(self, pcm: Tensor, frames: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        e_audio, audio_state = self.model.audio_encoder(pcm, state[:, : self.audio_state])
        e_video, video_state = self.model.video_encoder(frames, state[:, self.audio_state :])
        return e_audio, e_video, torch.cat((audio_state, video_state), dim=1)

    def over(self, pcm: Tensor, frames: Tensor, state: Kept) -> tuple[Tensor, Tensor, Tensor]:
        """`forward` over states that stay where they are; last comes their witness [B]."""
        audio, video, split = self.model.audio_encoder, self.model.video_encoder, self.audio_state
        e_audio = over(audio, audio.tapes, pcm, state.part(0, split))
        e_video = over(video, video.tapes, frames, state.part(split, self.state_size))
        return e_audio, e_video, state.witness()

    def start(self) -> Tensor:
        """State [Sp] of a session before its first unit."""
        return torch.cat((self.model.audio_encoder.start(), self.model.video_encoder.start()))


class EncodeStep(nn.Module):
    """pcm [B, N], frames uint8 [B, 4, H, W, 3], state [B, Se] -> z_video, z_audio, state_out: media as the agent's own.

    Called while a session opens, for the picture and the voice that it is to have.
    """

    def __init__(self, model: DuplexModel) -> None:
        super().__init__()
        self.model = model
        self.audio_state = model.audio_codec.encoder_size

    @property
    def state_size(self) -> int:
        return self.audio_state + self.model.video_codec.encoder_size

    def forward(self, pcm: Tensor, frames: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z_audio, audio_state = self.model.audio_codec.encode(pcm, state[:, : self.audio_state])
        z_video, video_state = self.model.video_codec.encode(frames, state[:, self.audio_state :])
        return z_video, z_audio, torch.cat((audio_state, video_state), dim=1)

    def start(self) -> Tensor:
        """State [Se] before the first unit."""
        return torch.cat((self.model.audio_codec.start()[0], self.model.video_codec.start()[0]))


class ThinkStep(nn.Module):
    """A context block, one slot token or a prompt -> logits of the last token and the K/V of all tokens.

    The parts that a pass does not have come with zero tokens: a slot pass has only `ids` [B, 1].
    """

    def __init__(self, model: DuplexModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        z_video: Tensor,
        z_audio: Tensor,
        e_video: Tensor,
        e_audio: Tensor,
        ids: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
        block_mask: Tensor,
        page_table: Tensor,
        page_range: Tensor,
        k_pool: Tensor,
        v_pool: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        m = self.model
        x = torch.cat(
            (
                m.video_in(z_video) + m.video_position[: z_video.shape[1]],
                m.audio_in(z_audio) + m.audio_position[: z_audio.shape[1]],
                e_video,
                e_audio,
                m.model.embed_tokens(ids),
            ),
            dim=1,
        )
        histories, visible = gather_history(page_table, page_range, k_pool, v_pool)
        history_mask = visible.unsqueeze(1).expand(-1, block_mask.shape[1], -1)
        mask = torch.cat((history_mask, block_mask), dim=2)
        hidden, k_new, v_new = m.model(x, rope_cos, rope_sin, mask, histories)
        return m.logits(hidden[:, -1]), k_new, v_new


class PerformStep(nn.Module):
    """One evaluation of the velocity field for each row, every row at its own tau."""

    def __init__(self, model: DuplexModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        x_video: Tensor,
        x_audio: Tensor,
        tau: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
        page_table: Tensor,
        page_range: Tensor,
        k_pool: Tensor,
        v_pool: Tensor,
    ) -> tuple[Tensor, Tensor]:
        m = self.model
        x = m.embed_latents(x_video, x_audio)
        histories, visible = gather_history(page_table, page_range, k_pool, v_pool)
        # Noisy tokens see each other in both directions and all visible history.
        own = torch.ones(x.shape[:2], dtype=torch.bool)
        mask = torch.cat((visible, own), dim=1).unsqueeze(1).expand(-1, x.shape[1], -1)
        modulations = [layer.unsqueeze(1) for layer in m.modulation(tau)]
        hidden, _, _ = m.model(x, rope_cos, rope_sin, mask, histories, modulations)
        z_video, z_audio = m.clean_estimate(hidden)
        return velocity(x_video, z_video, tau), velocity(x_audio, z_audio, tau)


class RenderStep(nn.Module):
    """Clean latents [B, n_v, c_v], [B, n_a, c_a], state [B, Sr] -> pcm [B, N], frames uint8 [B, 4, H, W, 3], state."""

    def __init__(self, model: DuplexModel) -> None:
        super().__init__()
        self.model = model
        self.audio_state = model.audio_codec.decoder_size

    @property
    def state_size(self) -> int:
        return self.audio_state + self.model.video_codec.decoder_size

    def forward(self, z_video: Tensor, z_audio: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pcm, audio_state = self.model.audio_codec.decode(z_audio, state[:, : self.audio_state])
        pixels, video_state = self.model.video_codec.decode(z_video, state[:, self.audio_state :])
        frames = torch.floor(pixels + 0.5).to(torch.uint8)
        return pcm, frames, torch.cat((audio_state, video_state), dim=1)

    def over(self, z_video: Tensor, z_audio: Tensor, state: Kept) -> tuple[Tensor, Tensor, Tensor]:
        """`forward` over states that stay where they are; last comes their witness [B]."""
        audio, video, split = self.model.audio_codec, self.model.video_codec, self.audio_state
        pcm = over(audio.decode, audio.tapes, z_audio, state.part(0, split))
        pixels = over(video.decode, video.tapes, z_video, state.part(split, self.state_size))
        return pcm, torch.floor(pixels + 0.5).to(torch.uint8), state.witness()

    def start(self) -> Tensor:
        """State [Sr] of a session before its first unit."""
        return torch.cat((self.model.audio_codec.start()[1], self.model.video_codec.start()[1]))


@dataclass(frozen=True)
class StepSpec:
    """Names and example inputs of one step, for export and for tests."""

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    dynamic: dict[str, dict[int, str]]  # input -> axis -> symbol


def step_specs(model: DuplexModel, batch: int = 2, pages: int = 3, page_tokens: int = 16) -> dict[str, StepSpec]:
    """The steps with zero-valued example inputs; `pages` pages a row out of a pool of `2 * pages`."""
    c = model.config
    b, v, a = c.backbone, c.video, c.audio
    perceive, think, perform, render = PerceiveStep(model), ThinkStep(model), PerformStep(model), RenderStep(model)
    encode = EncodeStep(model)
    half = b.head_dim // 2
    pool = torch.zeros(b.layers, 2 * pages, page_tokens, b.kv_heads, b.head_dim, dtype=model.kv_dtype)
    table = torch.zeros(batch, pages, dtype=torch.int64)
    span = torch.zeros(batch, pages, 2, dtype=torch.int64)
    history = {"page_table": table, "page_range": span, "k_pool": pool, "v_pool": pool.clone()}
    paged = {
        "page_table": {0: "batch", 1: "pages"},
        "page_range": {0: "batch", 1: "pages"},
        "k_pool": {1: "pool_pages", 2: "page_tokens"},
        "v_pool": {1: "pool_pages", 2: "page_tokens"},
    }
    t, n = c.block_tokens, c.latent_tokens
    rows = {0: "batch"}

    def rope(tokens: int) -> dict[str, Tensor]:
        return {"rope_cos": torch.ones(batch, tokens, half), "rope_sin": torch.zeros(batch, tokens, half)}

    def media(state: int) -> dict[str, Tensor]:
        frames = torch.zeros(batch, FRAMES_PER_UNIT, v.height, v.width, 3, dtype=torch.uint8)
        return {"pcm": torch.zeros(batch, a.unit_samples), "frames": frames, "state": torch.zeros(batch, state)}

    of_media = {"pcm": rows, "frames": rows, "state": rows}
    return {
        "perceive": StepSpec(
            "perceive", perceive, media(perceive.state_size), ("e_audio", "e_video", "state_out"), of_media
        ),
        "think": StepSpec(
            "think",
            think,
            {
                "z_video": torch.zeros(batch, v.tokens, v.latent_dim),
                "z_audio": torch.zeros(batch, a.tokens, a.latent_dim),
                "e_video": torch.zeros(batch, v.perceive_tokens, b.hidden_size),
                "e_audio": torch.zeros(batch, a.perceive_tokens, b.hidden_size),
                "ids": torch.zeros(batch, c.language.text_tokens + 1, dtype=torch.int64),
                **rope(t),
                "block_mask": torch.ones(batch, t, t, dtype=torch.bool),
                **history,
            },
            ("logits", "k_new", "v_new"),
            {
                "z_video": {0: "batch", 1: "video_tokens"},
                "z_audio": {0: "batch", 1: "audio_tokens"},
                "e_video": {0: "batch", 1: "seen_tokens"},
                "e_audio": {0: "batch", 1: "heard_tokens"},
                "ids": {0: "batch", 1: "id_tokens"},
                "rope_cos": {0: "batch", 1: "tokens"},
                "rope_sin": {0: "batch", 1: "tokens"},
                "block_mask": {0: "batch", 1: "tokens", 2: "tokens"},
                **paged,
            },
        ),
        "perform": StepSpec(
            "perform",
            perform,
            {
                "x_video": torch.zeros(batch, v.tokens, v.latent_dim),
                "x_audio": torch.zeros(batch, a.tokens, a.latent_dim),
                "tau": torch.ones(batch),
                **rope(n),
                **history,
            },
            ("velocity_video", "velocity_audio"),
            {
                "x_video": rows,
                "x_audio": rows,
                "tau": rows,
                "rope_cos": rows,
                "rope_sin": rows,
                **paged,
            },
        ),
        "render": StepSpec(
            "render",
            render,
            {
                "z_video": torch.zeros(batch, v.tokens, v.latent_dim),
                "z_audio": torch.zeros(batch, a.tokens, a.latent_dim),
                "state": torch.zeros(batch, render.state_size),
            },
            ("pcm", "frames", "state_out"),
            {"z_video": rows, "z_audio": rows, "state": rows},
        ),
        "encode": StepSpec("encode", encode, media(encode.state_size), ("z_video", "z_audio", "state_out"), of_media),
    }


def codec_parts(step: str, config: ModelConfig) -> tuple[str, ...]:
    """The parts of a `DuplexModel` whose weights perceive, render or encode uses."""
    if step in ("render", "encode"):
        return ("audio_codec", "video_codec")
    streams = {"audio": config.audio, "video": config.video}
    shared = tuple(f"{stream}_codec" for stream, c in streams.items() if c.perceive == "codec")
    return ("audio_encoder", "video_encoder", *shared)


def state_sizes(config: ModelConfig) -> dict[str, int]:
    """Floats of state of the stateful steps, from the config alone (meta tensors, no memory)."""
    with torch.device("meta"):
        return {step: module.state_size for step, module in _stateful(DuplexModel(config)).items()}


def start_states(model: DuplexModel) -> dict[str, Tensor]:
    """State [S] of a session before its first unit, of the steps where it is not all zeros."""
    states = {step: module.start() for step, module in _stateful(model).items()}
    return {step: state for step, state in states.items() if bool(state.any())}


def _stateful(model: DuplexModel) -> dict[str, PerceiveStep | RenderStep | EncodeStep]:
    return {"perceive": PerceiveStep(model), "render": RenderStep(model), "encode": EncodeStep(model)}
