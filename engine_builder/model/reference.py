"""The oracle: a whole conversation in ONE forward pass with an explicit mask and no cache.

Every engine, batch, page table and retention policy is tested against this file, and training uses it as its forward
pass. Sequence: [ prompt | block and slots of unit 0, 1, ... | noisy latents of unit 0, 1, ... ]. The order of the
parts does not matter, since RoPE positions are explicit and the mask says who sees whom:

- a prompt token sees the prompt up to itself; a persona's latents follow, each unit of which sees itself whole;
- block k before its slots sees the prompt, itself in both directions, and what retention keeps of blocks j < k;
- slot i of unit k sees the same and slots <= i;
- noisy tokens of unit k see everything of unit k, each other, and what retention keeps of blocks j < k;
- nobody else sees a noisy token, and nobody sees padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import ModelConfig
from ..layout import UnitLayout, rope_tables
from .duplex import DuplexModel, velocity

# visible(kind, token_unit, current_unit): kind is "av" or "language"; token_unit < current_unit.
Visible = Callable[[str, int, int], bool]


def keep_all(kind: str, token_unit: int, current_unit: int) -> bool:
    """Retention `full`."""
    return True


@dataclass(frozen=True)
class Conversation:
    """B conversations of K units, everything that went in and came out. Absent tokens hold `pad_id`.

    prompt int64 [B, Np] (padded on the right), z_video [B, K, n_v, c_v] and z_audio [B, K, n_a, c_a]: the committed
    latents z_0 .. z_{K-1}; e_video [B, K, n_ev, d], e_audio [B, K, n_ea, d]; text int64 [B, K, text_tokens];
    slots int64 [B, K, S]: the emitted tokens without `<eou>`; x_video, x_audio like z: noisy probes at tau [B, K].
    own_video [B, P, n_v, c_v] and own_audio: latents of P units of a persona, if there is one; unit 0 goes on from the
    picture of the last, in silence.
    """

    prompt: Tensor
    z_video: Tensor
    z_audio: Tensor
    e_video: Tensor
    e_audio: Tensor
    text: Tensor
    slots: Tensor
    x_video: Tensor
    x_audio: Tensor
    tau: Tensor
    own_video: Tensor | None = None
    own_audio: Tensor | None = None


@dataclass(frozen=True)
class Outputs:
    """logits [B, K, 1 + S, V]: of the query, then of every slot token; velocity_video, velocity_audio like z;
    clean_video, clean_audio: the network's own estimate of z_0; k, v [L, B, K, block + S, G, D]: K/V of the blocks."""

    logits: Tensor
    velocity_video: Tensor
    velocity_audio: Tensor
    clean_video: Tensor
    clean_audio: Tensor
    k: Tensor
    v: Tensor


def unit_visibility(units: int, visible: Visible) -> tuple[Tensor, Tensor]:
    """bool [K, K] tables `[current, past]` of what earlier units keep visible, for av and for language tokens."""
    tables = []
    for kind in ("av", "language"):
        rows = [[past < now and visible(kind, past, now) for past in range(units)] for now in range(units)]
        tables.append(torch.tensor(rows, dtype=torch.bool).view(units, units))
    return tables[0], tables[1]


def conversation_mask(
    config: ModelConfig,
    prompt_valid: Tensor,
    text_valid: Tensor,
    slot_valid: Tensor,
    visible: Visible,
    own_units: int = 0,
) -> Tensor:
    """bool [B, T, T]: row may see column. prompt_valid [B, Np + own latents], text_valid [B, K, text_tokens],
    slot_valid [B, K, S]. own_units: of a persona, whose latents are the last of the prompt."""
    layout = UnitLayout.of(config)
    batch, prompt = prompt_valid.shape
    units = text_valid.shape[1]
    span, noisy = layout.span, layout.latents
    clean = units * span
    total = prompt + clean + units * noisy

    unit = torch.cat((torch.arange(units).repeat_interleave(span), torch.arange(units).repeat_interleave(noisy)))
    offset = torch.cat((torch.arange(span).repeat(units), torch.full((units * noisy,), span)))  # noisy: after all slots
    is_noisy = offset == span
    is_slot = (offset >= layout.slot_offset) & ~is_noisy
    is_language = is_slot | ((offset >= layout.text_offset) & (offset < layout.query_offset))

    av_table, language_table = unit_visibility(units, visible)
    past = torch.where(is_language[None, :], language_table[unit][:, unit], av_table[unit][:, unit])
    past = past & ~is_noisy[None, :]
    same = unit[:, None] == unit[None, :]
    key_slot, key_noisy = is_slot[None, :], is_noisy[None, :]
    causal = offset[None, :] <= offset[:, None]  # between slots, and from noisy tokens to all slots
    own = torch.where(key_noisy, is_noisy[:, None], torch.where(key_slot, causal & ~key_noisy, ~key_slot))
    units_mask = past | (same & own)

    mask = torch.zeros(batch, total, total, dtype=torch.bool)
    words = prompt - own_units * noisy
    step = torch.cat((torch.arange(words), words + torch.arange(own_units).repeat_interleave(noisy)))
    mask[:, :prompt, :prompt] = step[None, :] <= step[:, None]  # the latents of a persona's unit see each other
    mask[:, prompt:, :prompt] = True
    mask[:, prompt:, prompt:] = units_mask

    valid = torch.ones(batch, units, span, dtype=torch.bool)
    valid[:, :, layout.text_offset : layout.query_offset] = text_valid
    valid[:, :, layout.slot_offset :] = slot_valid
    keys = torch.cat(
        (prompt_valid, valid.view(batch, clean), torch.ones(batch, units * noisy, dtype=torch.bool)), dim=1
    )
    # Padding sees itself, so that its softmax is defined; nothing reads the result.
    return (mask & keys[:, None, :]) | torch.eye(total, dtype=torch.bool)


def forward(
    model: DuplexModel, conversation: Conversation, visible: Visible = keep_all, mask: Tensor | None = None
) -> Outputs:
    """Runs B conversations of K units in one pass; `mask` may be given when it was built before (training)."""
    c, t = model.config, conversation
    layout, pad = UnitLayout.of(c), c.language.pad_id
    batch, words = t.prompt.shape
    units, d = t.z_video.shape[1], c.backbone.hidden_size
    span, noisy = layout.span, layout.latents

    def latents(video: Tensor, audio: Tensor) -> Tensor:
        flat = model.embed_latents(video.flatten(0, 1), audio.flatten(0, 1))
        return flat.view(batch, -1, noisy, d)

    prefix, prompt_valid = model.model.embed_tokens(t.prompt), t.prompt != pad
    prefix_positions = torch.arange(words).expand(batch, -1)
    own_units = 0
    if t.own_video is not None and t.own_audio is not None:
        own_units, own = t.own_video.shape[1], latents(t.own_video, t.own_audio).flatten(1, 2)
        own_positions = prompt_valid.sum(dim=1, keepdim=True) + torch.arange(own.shape[1])
        prefix, prefix_positions = torch.cat((prefix, own), dim=1), torch.cat((prefix_positions, own_positions), dim=1)
        prompt_valid = torch.cat((prompt_valid, torch.ones(own.shape[:2], dtype=torch.bool)), dim=1)
    prompt = prefix.shape[1]
    if mask is None:
        mask = conversation_mask(c, prompt_valid, t.text != pad, t.slots != pad, visible, own_units)

    def previous(z: Tensor, own: Tensor | None) -> Tensor:  # z_{k-1}; before the first unit a persona's or zeros
        first = torch.zeros_like(z[:, :1]) if own is None or not own.shape[1] else own[:, -1:]
        return torch.cat((first, z[:, :-1]), dim=1)

    query = torch.full((batch, units, 1), c.language.query_id, dtype=torch.int64)
    ids = torch.cat((t.text, query, t.slots), dim=2)
    blocks = torch.cat(
        (
            latents(previous(t.z_video, t.own_video), previous(t.z_audio, None)),
            t.e_video,
            t.e_audio,
            model.model.embed_tokens(ids),
        ),
        dim=2,
    )
    x = torch.cat(
        (
            prefix,
            blocks.flatten(1, 2),
            latents(t.x_video, t.x_audio).flatten(1, 2),
        ),
        dim=1,
    )

    origin = prompt_valid.sum(dim=1, keepdim=True)
    clean_positions = origin + torch.arange(units * span)
    noisy_positions = (torch.arange(1, units + 1)[:, None] * span + torch.arange(noisy)).flatten() + origin
    positions = torch.cat((prefix_positions, clean_positions, noisy_positions), dim=1)
    cos, sin = (torch.from_numpy(table).to(x.dtype) for table in rope_tables(c.backbone, positions.numpy()))

    modulations = [m.repeat_interleave(noisy, dim=1) for m in model.modulation(t.tau)]
    hidden, k, v = model.model(x, cos, sin, mask, None, modulations)

    clean = hidden[:, prompt : prompt + units * span].view(batch, units, span, d)
    logits = model.logits(clean[:, :, layout.query_offset :])
    z_video, z_audio = model.clean_estimate(hidden[:, prompt + units * span :].reshape(batch * units, noisy, d))
    tau = t.tau.flatten()
    kv_shape = (c.backbone.layers, batch, units, span, c.backbone.kv_heads, c.backbone.head_dim)
    return Outputs(
        logits=logits,
        velocity_video=velocity(t.x_video.flatten(0, 1), z_video, tau).view_as(t.x_video),
        velocity_audio=velocity(t.x_audio.flatten(0, 1), z_audio, tau).view_as(t.x_audio),
        clean_video=z_video.view_as(t.z_video),
        clean_audio=z_audio.view_as(t.z_audio),
        k=k[:, :, prompt : prompt + units * span].reshape(kv_shape),
        v=v[:, :, prompt : prompt + units * span].reshape(kv_shape),
    )
