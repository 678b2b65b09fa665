"""The small operations between the matrix products, each as one kernel: norms, RoPE, SwiGLU and rounding to float8.

The residual stream is float32; everything that a matrix product reads is rounded once, here. N = B * T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine_builder.targets import precision

from .jit import EMULATED, INTERPRETED, ceil_div, jit, narrow, next_power_of_2, tl

# Rows that one program handles: a GPU has programs to spare, the interpreter pays for each.
ROWS = 64 if INTERPRETED else 1
FP8_LARGEST = tl.constexpr(precision.FP8_LARGEST)
SMALLEST_ROW = tl.constexpr(precision.SMALLEST_ROW)
HEAD_ROWS = 64 if INTERPRETED else 8


@dataclass(frozen=True)
class Modulation:
    """Shifts, scales and gates of noisy tokens: `shared` float32 [B, 6, d] of this tau and `tables` [L, 6, d] of the
    layers; both are added. Order: shift, scale and gate of the attention, then of the MLP."""

    shared: Tensor
    tables: Tensor

    SHIFT_A, SCALE_A, GATE_A, SHIFT_M, SCALE_M, GATE_M = range(6)


def add_norm(
    x: Tensor,
    update: Tensor | None,
    weight: Tensor,
    eps: float,
    dtype: torch.dtype,
    modulation: Modulation | None = None,
    gate: tuple[int, int] | None = None,
    scale_shift: tuple[int, int, int] | None = None,
) -> Tensor:
    """x [B, T, d] float32 += update [B, T, d] (in place); returns RMSNorm(x) * weight in `dtype`.

    With a modulation: gate (layer, row) scales the update by 1 + gate; scale_shift (layer, scale row, shift row) is
    applied to the result.
    """
    batch, tokens, width = x.shape
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    shared = modulation.shared if modulation else weight
    tables = modulation.tables if modulation else weight
    gate_layer, gate_row = gate or (0, 0)
    layer, scale_row, shift_row = scale_shift or (0, 0, 0)
    _add_norm_kernel[(ceil_div(batch * tokens, ROWS),)](
        x,
        update if update is not None else x,
        weight,
        shared,
        tables,
        out,
        eps,
        batch * tokens,
        tokens,
        gate_layer,
        layer,
        WIDTH=width,
        PAD=next_power_of_2(width),
        ROWS=ROWS,
        UPDATE=update is not None,
        GATE=gate_row if modulation and gate else -1,
        SCALE=scale_row if modulation and scale_shift else -1,
        SHIFT=shift_row,
        num_warps=8 if width >= 2048 else 4,
    )
    return out


@jit
def _modulation_row(shared, tables, b, layer, row: tl.constexpr, c, here, WIDTH: tl.constexpr):
    """float32 [ROWS, PAD]: row `row` of the modulation of each token's batch row b [ROWS]."""
    s = tl.load(shared + (b * 6 + row)[:, None] * WIDTH + c[None, :], mask=here, other=0.0)
    t = tl.load(tables + (layer * 6 + row) * WIDTH + c, mask=c < WIDTH, other=0.0)
    return s.to(tl.float32) + t.to(tl.float32)[None, :]


@jit(do_not_specialize=["gate_layer", "layer"])  # one kernel for all layers
def _add_norm_kernel(
    x,
    update,
    weight,
    shared,
    tables,
    out,
    eps,
    count,
    tokens,
    gate_layer,
    layer,
    WIDTH: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
    UPDATE: tl.constexpr,
    GATE: tl.constexpr,
    SCALE: tl.constexpr,
    SHIFT: tl.constexpr,
):
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, PAD)
    here = (n < count)[:, None] & (c < WIDTH)[None, :]
    place = n.to(tl.int64)[:, None] * WIDTH + c[None, :]
    b = n // tokens
    h = tl.load(x + place, mask=here, other=0.0)
    if UPDATE:
        u = tl.load(update + place, mask=here, other=0.0).to(tl.float32)
        if GATE >= 0:
            u = u * (1.0 + _modulation_row(shared, tables, b, gate_layer, GATE, c, here, WIDTH))
        h = h + u
        tl.store(x + place, h, mask=here)
    variance = tl.sum(h * h, axis=1) / WIDTH
    h = h * (1.0 / tl.sqrt(variance + eps))[:, None] * tl.load(weight + c, mask=c < WIDTH, other=0.0)[None, :]
    if SCALE >= 0:
        h = h * (1.0 + _modulation_row(shared, tables, b, layer, SCALE, c, here, WIDTH))
        h = h + _modulation_row(shared, tables, b, layer, SHIFT, c, here, WIDTH)
    tl.store(out + place, narrow(h, out.dtype.element_ty), mask=here)


def norm_rope(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
) -> None:
    """QK-norm and RoPE (half-split layout). qkv [B, T, H + 2 G, D] -> q [B, T, H, D], k and v [B, T, G, D].

    cos, sin float32 [B, T, D / 2]. All tensors are contiguous.
    """
    batch, tokens, parts, size = qkv.shape
    heads, groups = q.shape[2], k.shape[2]
    if parts != heads + 2 * groups:
        raise ValueError(f"qkv: expected {heads} + 2 * {groups} heads, got {parts}")
    count = batch * tokens
    _norm_rope_kernel[(ceil_div(count, HEAD_ROWS), parts)](
        qkv,
        q_weight,
        k_weight,
        cos,
        sin,
        q,
        k,
        v,
        eps,
        count,
        HEADS=heads,
        GROUPS=groups,
        HALF=size // 2,
        PAD=next_power_of_2(size // 2),
        ROWS=HEAD_ROWS,
        num_warps=2,
    )


@jit
def _norm_rope_kernel(
    qkv,
    q_weight,
    k_weight,
    cos,
    sin,
    q,
    k,
    v,
    eps,
    count,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    HALF: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Grid: (blocks of tokens, heads of q, k and v)."""
    part = tl.program_id(1)
    n = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, PAD)
    here = (n < count)[:, None] & (c < HALF)[None, :]
    place = (n * (HEADS + 2 * GROUPS) + part)[:, None] * (2 * HALF) + c[None, :]
    first = tl.load(qkv + place, mask=here, other=0.0)
    second = tl.load(qkv + place + HALF, mask=here, other=0.0)
    if part >= HEADS + GROUPS:
        to_v = (n * GROUPS + part - HEADS - GROUPS)[:, None] * (2 * HALF) + c[None, :]
        tl.store(v + to_v, first, mask=here)
        tl.store(v + to_v + HALF, second, mask=here)
    else:
        is_q = part < HEADS
        x1 = first.to(tl.float32)
        x2 = second.to(tl.float32)
        variance = (tl.sum(x1 * x1, axis=1) + tl.sum(x2 * x2, axis=1)) / (2 * HALF)
        rms = (1.0 / tl.sqrt(variance + eps))[:, None]
        q_here = (c < HALF) & is_q
        k_here = (c < HALF) & (part >= HEADS)
        w1 = tl.load(q_weight + c, mask=q_here, other=0.0) + tl.load(k_weight + c, mask=k_here, other=0.0)
        w2 = tl.load(q_weight + HALF + c, mask=q_here, other=0.0) + tl.load(k_weight + HALF + c, mask=k_here, other=0.0)
        x1 = x1 * rms * w1[None, :]
        x2 = x2 * rms * w2[None, :]
        angle = n[:, None] * HALF + c[None, :]
        co = tl.load(cos + angle, mask=here, other=0.0)
        si = tl.load(sin + angle, mask=here, other=0.0)
        left = narrow(x1 * co - x2 * si, q.dtype.element_ty)
        right = narrow(x2 * co + x1 * si, q.dtype.element_ty)
        if is_q:
            to_q = (n * HEADS + part)[:, None] * (2 * HALF) + c[None, :]
            tl.store(q + to_q, left, mask=here)
            tl.store(q + to_q + HALF, right, mask=here)
        else:
            to_k = (n * GROUPS + part - HEADS)[:, None] * (2 * HALF) + c[None, :]
            tl.store(k + to_k, left, mask=here)
            tl.store(k + to_k + HALF, right, mask=here)


def silu_mul(gate_up: Tensor) -> Tensor:
    """SwiGLU's product: gate_up [B, T, 2 F] (gate first) -> silu(gate) * up [B, T, F]."""
    batch, tokens, double = gate_up.shape
    width = double // 2
    out = torch.empty(batch, tokens, width, dtype=gate_up.dtype, device=gate_up.device)
    block = next_power_of_2(width) if INTERPRETED else 1024
    _silu_mul_kernel[(batch * tokens, ceil_div(width, block))](gate_up, out, width, BLOCK=block)
    return out


@jit
def _silu_mul_kernel(gate_up, out, width, BLOCK: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = c < width
    gate = tl.load(gate_up + n * 2 * width + c, mask=here, other=0.0).to(tl.float32)
    up = tl.load(gate_up + n * 2 * width + width + c, mask=here, other=0.0).to(tl.float32)
    tl.store(out + n * width + c, narrow(gate / (1.0 + tl.exp(-gate)) * up, out.dtype.element_ty), mask=here)


def to_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [N, d] -> float8 (e4m3) [N, d] and scales float32 [N]; a row's largest magnitude becomes the largest float8."""
    count, width = x.shape
    values = torch.empty(x.shape, dtype=precision.FP8, device=x.device)
    scale = torch.empty(count, dtype=torch.float32, device=x.device)
    _to_fp8_kernel[(ceil_div(count, ROWS),)](
        x,
        values,
        scale,
        count,
        WIDTH=width,
        PAD=next_power_of_2(width),
        ROWS=ROWS,
        num_warps=8 if width >= 2048 else 4,
    )
    return values, scale


@jit
def _to_fp8_kernel(x, values, scale, count, WIDTH: tl.constexpr, PAD: tl.constexpr, ROWS: tl.constexpr):
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, PAD)
    here = (n < count)[:, None] & (c < WIDTH)[None, :]
    place = n.to(tl.int64)[:, None] * WIDTH + c[None, :]
    h = tl.load(x + place, mask=here, other=0.0).to(tl.float32)
    s = tl.maximum(tl.max(tl.abs(h), axis=1), SMALLEST_ROW) / FP8_LARGEST
    tl.store(scale + n, s, mask=n < count)
    h = h / s[:, None]
    if EMULATED:  # the interpreter rounds otherwise: here a sum does it that has no place for more than three bits
        size = 1.5 * tl.exp2(tl.floor(tl.log2(tl.maximum(tl.abs(h), 0.015625))) + 20.0)
        h = (h + size) - size
    tl.store(values + place, h.to(values.dtype.element_ty), mask=here)
