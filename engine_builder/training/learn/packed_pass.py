"""The oracle's forward pass, packed for training on a CPU: the same numbers for less work.

`reference.forward` spends tokens on every text column and slot of a unit; in the tutor's world a unit types at most one
word, hears at most one and speaks at most one. Here a unit has ONE text column and THREE slots (state, what was heard,
word), clean queries never meet noisy
keys, and matrix products may run in bfloat16. Tested equal to `reference.forward`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from engine_builder.config import ModelConfig
from engine_builder.layout import UnitLayout, rope_tables
from engine_builder.model.backbone import Layer, attend, rotate
from engine_builder.model.duplex import DuplexModel

SLOTS = 3


@dataclass(frozen=True)
class PackedUnits:
    """B stretches of K units. Absent tokens hold `pad_id`.

    prompt int64 [B, P]; own_video [B, Q, n_v, c_v], own_audio [B, Q, n_a, c_a]: latents of a persona's references, of
    which the first own_units int64 [B] are there; first_unit int64 [B]: session index of unit 0; z_video [B, K + 1,
    n_v, c_v] and z_audio [B, K + 1, n_a, c_a]: committed latents of units -1 .. K-1 (what the context shows); text
    int64 [B, K]; slots int64 [B, K, 3]; x_video, x_audio [B, K, ...]: noisy latents at tau [B, K].

    All of it on the CPU, wherever the model is.

    reach int64 [B]: a unit sees the prompt and the blocks of so many last units, its own included. cut, gap int64 [B]:
    between units cut - 1 and cut, `gap` units are left out: positions jump over them (PoSE, Zhu et al. 2023,
    arXiv:2309.10400), and each key before the cut weighs as much as its share of the left-out ones would.
    """

    prompt: Tensor
    own_video: Tensor
    own_audio: Tensor
    own_units: Tensor
    first_unit: Tensor
    z_video: Tensor
    z_audio: Tensor
    text: Tensor
    slots: Tensor
    x_video: Tensor
    x_audio: Tensor
    tau: Tensor
    reach: Tensor
    cut: Tensor
    gap: Tensor


class PackedPass(nn.Module):
    """forward -> logits [B, K, 4, V] (query, slots) and estimates of z_0 [B, K, n_v, c_v], [B, K, n_a, c_a], where the
    model is."""

    def __init__(self, model: DuplexModel) -> None:
        super().__init__()
        self.model = model
        self._tables: dict[int, _Table] = {}

    def forward(self, units: PackedUnits, e_video: Tensor, e_audio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """e_video [B, K, n_ev, d], e_audio [B, K, n_ea, d]."""
        m, c = self.model, self.model.config
        batch, count = units.text.shape
        noisy, dtype, device = c.latent_tokens, m.video_in.weight.dtype, m.video_in.weight.device
        span = block_offsets(c).numel()

        def latents(video: Tensor, audio: Tensor) -> Tensor:
            flat = m.embed_latents(video.flatten(0, 1).to(device, dtype), audio.flatten(0, 1).to(device, dtype))
            return flat.view(batch, -1, noisy, flat.shape[-1])

        query = torch.full((batch, count, 1), c.language.query_id)
        ids = torch.cat((units.text.unsqueeze(2), query, units.slots), dim=2)
        context = latents(units.z_video[:, :count], units.z_audio[:, :count])
        words = m.model.embed_tokens(ids.to(device))
        blocks = torch.cat((context, e_video.to(dtype), e_audio.to(dtype), words), dim=2)
        probes = latents(units.x_video, units.x_audio)
        own = latents(units.own_video, units.own_audio)
        prefix = torch.cat((m.model.embed_tokens(units.prompt.to(device)), own.flatten(1, 2)), dim=1)
        x = torch.cat((prefix, blocks.flatten(1, 2), probes.flatten(1, 2)), dim=1)

        clean = prefix.shape[1] + count * span
        cos, sin = (table.to(device, dtype) for table in self._rope(units))
        clean_bias, noisy_bias = self._mask(units)
        mask = clean_bias.to(device, dtype), noisy_bias.to(device, dtype)
        modulations = [t.to(dtype).repeat_interleave(noisy, dim=1) for t in m.modulation(units.tau.to(device))]
        for layer, modulation in zip(m.model.layers, modulations, strict=True):
            x = _layer(cast(Layer, layer), x, cos, sin, mask, modulation, clean)
        hidden = m.model.norm(x)
        logits = m.logits(hidden[:, prefix.shape[1] : clean].view(batch, count, span, -1)[:, :, -SLOTS - 1 :])
        z_video, z_audio = m.clean_estimate(hidden[:, clean:].reshape(batch * count, noisy, -1))
        return logits, z_video.view_as(units.x_video), z_audio.view_as(units.x_audio)

    def _rope(self, units: PackedUnits) -> tuple[Tensor, Tensor]:
        c = self.model.config
        layout = UnitLayout.of(c)
        words, count = units.prompt.shape[1], units.text.shape[1]
        # Padding takes no positions: the references follow the last word, and unit 0 the last of them.
        said = (units.prompt != c.language.pad_id).sum(dim=1)[:, None]
        own = said + torch.arange(units.own_video.shape[1] * layout.latents)
        origin = (said + units.own_units[:, None] * layout.latents)[:, :, None]
        number = torch.arange(count)
        left_out = units.gap[:, None] * (number >= units.cut[:, None])
        start = origin + (units.first_unit[:, None] + number + left_out)[:, :, None] * layout.span
        clean = (start + block_offsets(c)).flatten(1)
        noisy = (start + layout.span + torch.arange(layout.latents)).flatten(1)
        positions = torch.cat((torch.arange(words).expand(len(clean), -1), own, clean, noisy), dim=1)
        cos, sin = rope_tables(c.backbone, positions.numpy())
        return torch.from_numpy(cos), torch.from_numpy(sin)

    def _mask(self, units: PackedUnits) -> tuple[Tensor, Tensor]:
        """What is added to the scores, -inf where nothing is seen: [B, clean, clean], [B, K * noisy, clean + K *
        noisy]."""
        c = self.model.config
        pad, count = c.language.pad_id, units.text.shape[1]
        if count not in self._tables:
            self._tables[count] = _table(c, count)
        table = self._tables[count]
        batch, words, noisy = len(units.text), units.prompt.shape[1], c.latent_tokens
        own = torch.arange(units.own_video.shape[1]).repeat_interleave(noisy)
        step = torch.cat((torch.arange(words), words + own))  # each unit of the references sees itself whole
        prompt = step.numel()
        valid = torch.ones(batch, count, block_offsets(c).numel(), dtype=torch.bool)
        valid[:, :, -SLOTS - 2] = units.text != pad
        valid[:, :, -SLOTS:] = units.slots != pad
        keys = torch.cat((units.prompt != pad, own < units.own_units[:, None], valid.flatten(1)), dim=1)
        size = keys.shape[1]
        reach, cut = units.reach[:, None, None], units.cut[:, None, None]
        weight = weight_of_old(units)[:, None, None]

        clean = torch.zeros(batch, size, size, dtype=torch.bool)
        clean[:, prompt:, :prompt] = True
        clean[:, prompt:, prompt:] = table.own | ((table.age > 0) & (table.age < reach))
        clean[:, :prompt, :prompt] = step[None, :] <= step[:, None]
        # Padding sees itself, so that its softmax is defined; nothing reads the result.
        clean = (clean & keys[:, None, :]) | torch.eye(size, dtype=torch.bool)

        rows = table.probe.numel()
        seen = torch.ones(batch, rows, prompt, dtype=torch.bool)
        history = (table.probe_age >= 0) & (table.probe_age < reach)
        each = (table.probe[:, None] == table.probe[None, :]).expand(batch, -1, -1)
        probes = torch.cat((seen, history, each), dim=2)
        probes = probes & torch.cat((keys, torch.ones(batch, rows, dtype=torch.bool)), dim=1)[:, None, :]

        def bias(visible: Tensor, query: Tensor) -> Tensor:
            old = (query[:, None] >= cut) & (table.unit < cut)
            added = nn.functional.pad(torch.where(old, weight, 0.0), (prompt, visible.shape[2] - size))
            added = nn.functional.pad(added, (0, 0, visible.shape[1] - query.numel(), 0))
            return added.masked_fill(~visible, -torch.inf)

        return bias(clean, table.unit), bias(probes, table.probe)


def weight_of_old(units: PackedUnits) -> Tensor:
    """What is added to the scores of keys before the cut, [B]: each stands for (cut + gap) / cut like itself."""
    return torch.log1p(units.gap / units.cut)


def compile_layers() -> None:
    """Compiles the layer for this process: a fifth faster after half a minute. Needs a C++ compiler."""
    global _layer
    _layer = torch.compile(_layer, dynamic=False)


def block_offsets(config: ModelConfig) -> Tensor:
    """Positions, inside a unit, of its packed tokens: latents, percepts, first text column, query, slots."""
    layout = UnitLayout.of(config)
    words = [layout.text_offset, layout.query_offset, *(layout.slot_offset + i for i in range(SLOTS))]
    return torch.tensor([*range(layout.text_offset), *words])


@dataclass(frozen=True)
class _Table:
    """Of stretches of one length. unit [T], probe [P]: units of the clean and of the noisy tokens; age [T, T] and
    probe_age [P, T]: of keys, in units; own bool [T, T]: keys of the same unit that a token sees."""

    unit: Tensor
    probe: Tensor
    age: Tensor
    probe_age: Tensor
    own: Tensor


def _table(config: ModelConfig, count: int) -> _Table:
    span = block_offsets(config).numel()
    unit = torch.arange(count).repeat_interleave(span)
    probe = torch.arange(count).repeat_interleave(config.latent_tokens)
    offset = torch.arange(span).repeat(count)
    slot = offset >= span - SLOTS
    age = unit[:, None] - unit[None, :]
    own = (age == 0) & torch.where(slot[None, :], offset[None, :] <= offset[:, None], True)
    return _Table(unit, probe, age, probe[:, None] - unit[None, :], own)


def _layer(
    layer: Layer, x: Tensor, cos: Tensor, sin: Tensor, mask: tuple[Tensor, Tensor], modulation: Tensor, clean: int
) -> Tensor:
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.unbind(2)
    h = layer.input_layernorm(x)
    h = torch.cat((h[:, :clean], h[:, clean:] * (1 + scale_a) + shift_a), dim=1)
    out = _attention(layer, h, cos, sin, mask, clean)
    x = torch.cat((x[:, :clean] + out[:, :clean], x[:, clean:] + out[:, clean:] * (1 + gate_a)), dim=1)
    h = layer.post_attention_layernorm(x)
    h = torch.cat((h[:, :clean], h[:, clean:] * (1 + scale_m) + shift_m), dim=1)
    out = layer.mlp(h)
    return torch.cat((x[:, :clean] + out[:, :clean], x[:, clean:] + out[:, clean:] * (1 + gate_m)), dim=1)


def _attention(layer: Layer, x: Tensor, cos: Tensor, sin: Tensor, mask: tuple[Tensor, Tensor], clean: int) -> Tensor:
    a = layer.self_attn
    batch, tokens, _ = x.shape
    q = rotate(a.q_norm(a.q_proj(x).view(batch, tokens, a.heads, a.head_dim)), cos, sin)
    k = rotate(a.k_norm(a.k_proj(x).view(batch, tokens, a.kv_heads, a.head_dim)), cos, sin)
    v = a.v_proj(x).view(batch, tokens, a.kv_heads, a.head_dim)
    first = attend(q[:, :clean], k[:, :clean], v[:, :clean], mask[0])
    second = attend(q[:, clean:], k, v, mask[1])
    return a.o_proj(torch.cat((first, second), dim=1))
