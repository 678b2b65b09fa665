"""Paged block-causal attention: the visible history, read in place from the KV pool, then the own block.

One kernel serves all passes: context blocks (a mask says who sees whom), prompts (a causal mask), noisy latents
(everybody sees everybody) and slots (one token). Every row also sees its whole visible history; order does not matter,
because RoPE is already in K. Online softmax after Milakov & Gimelshein 2018 (arXiv 1805.02867), tiling after
FlashAttention-2 (Dao 2023, arXiv 2307.08691), splits of the keys after Flash-Decoding (Dao et al. 2023).

The query heads of one group are rows of the same tile, so K and V are read once for all of them. A row of a tile is
(token t, head r of the group): m = t * R + r.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .history_index import TILE, HistoryIndex
from .jit import INTERPRETED, ceil_div, jit, narrow, next_power_of_2, operand, tl

LOG2_E = 1.4426950408889634
LOWEST = tl.constexpr(-1e30)  # the maximum of no scores; an infinity would need a comparison a tile: inf - inf is NaN
MIN_DOT = 16  # tl.dot takes no side shorter than this
MAX_SPLITS_TILED = 8  # beyond this the partial results of a wide pass cost more than the idle processors
MAX_SPLITS_SLOT = 128
SLOT_PROGRAMS = 3  # that fit a multiprocessor at once in a slot pass
MERGE_ELEMENTS = 1 << 18 if INTERPRETED else 1 << 13  # partial results that one program merges: 64 registers a thread


@dataclass(frozen=True)
class Tiling:
    """Block shapes of one launch: query rows x keys, warps a program, stages of the load pipeline, key splits."""

    rows: int
    keys: int
    warps: int
    stages: int
    splits: int


@dataclass(frozen=True)
class Chip:
    """What tiling depends on: multiprocessors, and the shared memory that one program may have."""

    multiprocessors: int
    shared_bytes: int

    @classmethod
    def of(cls, device: torch.device) -> Chip:
        """The chip of a device; on a CPU (interpreter) a single processor without limits."""
        if device.type != "cuda":
            return cls(1, 1 << 30)
        properties = torch.cuda.get_device_properties(device)
        return cls(properties.multi_processor_count, properties.shared_memory_per_block_optin)


def choose_tiling(
    batch: int, tokens: int, heads: int, groups: int, size: int, item_bytes: int, history: int, chip: Chip
) -> Tiling:
    """Block shapes and splits for B x T queries over up to `history` keys a row.

    Short passes are bound by the memory that K and V come from: many splits, so that every multiprocessor reads. Long
    passes are bound by the matrix units: splits only where the programs would not fill whole waves.
    """
    ratio = heads // groups
    rows = min(128, max(MIN_DOT, next_power_of_2(tokens * ratio)))
    if item_bytes > 2:  # no matrix units: sums live in registers, and more than these would not
        rows, shapes = min(rows, 32), ((32, 5), (32, 3))
    else:
        shapes = ((128, 5), (64, 5), (64, 3)) if rows == 128 else ((64, 5), (64, 3))
    if INTERPRETED:
        shapes = ((TILE, 1),)  # the interpreter's time goes by tiles, not by bytes
    # The list of places is loaded one stage ahead of K and V, so 5 stages keep two or three tiles of both in flight.
    room = chip.shared_bytes // (size * item_bytes)
    keys, stages = next((shape for shape in shapes if rows + shape[0] * (shape[1] + 1) <= room), shapes[-1])
    tiles = ceil_div(tokens, keys) + ceil_div(history, keys)
    programs = batch * groups * ceil_div(tokens * ratio, rows)
    if rows == MIN_DOT:
        splits = min(MAX_SPLITS_SLOT, tiles, max(1, SLOT_PROGRAMS * chip.multiprocessors // programs))
    else:
        # Time of n splits ~ waves / n; every further split writes and merges partial results, about 2% each.
        def cost(n: int) -> float:
            return ceil_div(programs * n, chip.multiprocessors) / n * (1 + 0.02 * (n - 1))

        splits = min(range(1, min(MAX_SPLITS_TILED, tiles) + 1), key=cost)
    return Tiling(rows, keys, 8 if rows >= 128 or item_bytes > 2 else 4, stages, splits)


def paged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    index: HistoryIndex,
    mask: Tensor | None = None,
    rows: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    tiling: Tiling | None = None,
) -> Tensor:
    """Attention of q [B, T, H, D] over own k, v [B, T, G, D] and the history in k_pool, v_pool [pages, page, G, D].

    mask: bool [B, T, T], True where the query (row) may see the own key (column); None: all see all. rows: int32 [B],
    the row of `index` that each batch row uses; None: its own. Every query must see at least one key.
    Returns [B, T, H, D] in `out_dtype` (that of q if None); sums are float32. Raises ValueError for shapes that do not
    fit.
    """
    batch, tokens, heads, size = q.shape
    groups = k.shape[2]
    _check(q, k, v, k_pool, v_pool, mask)
    chip = Chip.of(q.device)
    t = tiling or choose_tiling(batch, tokens, heads, groups, size, q.element_size(), index.tokens.shape[1], chip)
    out = torch.empty(q.shape, dtype=out_dtype or q.dtype, device=q.device)
    partial, weight = out, out
    if t.splits > 1:
        partial = torch.empty(t.splits, *q.shape, dtype=torch.float32, device=q.device)
        weight = torch.empty(t.splits, batch, tokens, heads, dtype=torch.float32, device=q.device)
    seen = q if mask is None else mask.view(torch.uint8)
    grid = (ceil_div(tokens * (heads // groups), t.rows), batch * groups, t.splits)
    _attend_kernel[grid](
        q,
        k,
        v,
        k_pool,
        v_pool,
        seen,
        index.tokens,
        index.lengths,
        index.order if rows is None else rows,
        partial,
        weight,
        size**-0.5 * LOG2_E,
        batch,
        tokens,
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        k_pool.stride(1),
        v_pool.stride(1),
        index.tokens.stride(0),
        GROUPS=groups,
        RATIO=heads // groups,
        SIZE=size,
        ROWS=t.rows,
        KEYS=t.keys,
        OWN_KEYS=min(t.keys, 64 if mask is None else 32),  # a mask's addresses take the registers of the other half
        SPLITS=t.splits,
        MASKED=mask is not None,
        num_warps=t.warps,
        num_stages=t.stages,
    )
    if t.splits > 1:
        count, pad = batch * tokens * heads, next_power_of_2(t.splits)
        at_once = max(1, MERGE_ELEMENTS // (pad * size))
        _merge_kernel[(ceil_div(count, at_once),)](
            partial, weight, out, count, SIZE=size, SPLITS=t.splits, PAD=pad, ROWS=next_power_of_2(at_once)
        )
    return out


def _check(q: Tensor, k: Tensor, v: Tensor, k_pool: Tensor, v_pool: Tensor, mask: Tensor | None) -> None:
    batch, tokens, heads, size = q.shape
    groups = k.shape[2]
    if size < MIN_DOT or size & (size - 1):
        raise ValueError(f"q: expected a head size that is a power of two from {MIN_DOT} on, got {size}")
    if heads % groups:
        raise ValueError(f"k: expected a number of heads that divides {heads}, got {groups}")
    for name, tensor in (("k", k), ("v", v)):
        if tensor.shape != (batch, tokens, groups, size):
            raise ValueError(f"{name}: expected {[batch, tokens, groups, size]}, got {list(tensor.shape)}")
    for name, pool in (("k_pool", k_pool), ("v_pool", v_pool)):
        if pool.shape[2:] != (groups, size):
            raise ValueError(f"{name}: expected [pages, page, {groups}, {size}], got {list(pool.shape)}")
        if pool.stride(0) != pool.shape[1] * pool.stride(1):
            raise ValueError(f"{name}: expected pages without gaps between them, got strides {pool.stride()}")
    for name, tensor in (("q", q), ("k", k), ("v", v), ("k_pool", k_pool), ("v_pool", v_pool)):
        if tensor.stride()[2:] != (size, 1):
            raise ValueError(f"{name}: expected heads without gaps between them, got strides {tensor.stride()}")
        if tensor.dtype != q.dtype:
            raise ValueError(f"{name}: expected {q.dtype} like q, got {tensor.dtype}")
    if mask is not None and (mask.shape != (batch, tokens, tokens) or mask.dtype != torch.bool):
        raise ValueError(f"mask: expected bool {[batch, tokens, tokens]}, got {mask.dtype} {list(mask.shape)}")
    if mask is not None and not mask.is_contiguous():
        raise ValueError("mask: expected a contiguous tensor")


@jit
def _history(k_pool, v_pool, index, column, k_token, v_token, SIZE: tl.constexpr):
    """Keys [SIZE, n] and values [n, SIZE] of the cached tokens `column` [n]. Lists are padded with the null page, which
    is readable and zero: no mask on the loads."""
    d = tl.arange(0, SIZE)
    where = tl.load(index + column).to(tl.int64)
    keys = tl.load(k_pool + where[None, :] * k_token + d[:, None])
    values = tl.load(v_pool + where[:, None] * v_token + d[None, :])
    return keys, values


@jit
def _attend_tile(queries, keys, values, hidden, acc, top, total, scale):
    """Online softmax over one tile: queries [ROWS, SIZE], keys [SIZE, KEYS], values [KEYS, SIZE], hidden [.., KEYS]."""
    scores = tl.dot(queries, operand(keys), input_precision="ieee")
    if hidden is not None:
        scores = tl.where(hidden, float("-inf"), scores)
    # In units of log2. The maximum is taken before the scale, so that scale and difference are one FFMA a score.
    higher = tl.maximum(top, tl.max(scores, axis=1) * scale)
    # The matrix units take p in the precision of V. What is summed is what is multiplied: the weights then add up to
    # one whatever was rounded, and a part that all values share comes out exact.
    p = narrow(tl.exp2(scores * scale - higher[:, None]), values.dtype)
    fade = tl.exp2(top - higher)
    total = total * fade + tl.sum(p.to(tl.float32), axis=1)
    acc = tl.dot(operand(p), operand(values), acc * fade[:, None], input_precision="ieee")
    return acc, higher, total


@jit
def _attend_kernel(
    q,
    k,
    v,
    k_pool,
    v_pool,
    mask,
    index,
    lengths,
    index_rows,
    out,
    weight,
    scale,
    batch,
    tokens,
    q_batch,
    q_token,
    k_batch,
    k_token,
    v_batch,
    v_token,
    k_pool_token,
    v_pool_token,
    index_stride,
    GROUPS: tl.constexpr,
    RATIO: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    OWN_KEYS: tl.constexpr,
    SPLITS: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Grid: (tiles of query rows, batch x group, splits). Tiles of keys are numbered history first, then own block.

    The order is not free: with whole tiles of history in the first loop and without a mask, their products run beside
    the softmax. Another loop before it, or none after it, and ptxas waits for each product (C7515; a test reads it).
    """
    b = tl.program_id(1) // GROUPS
    g = tl.program_id(1) % GROUPS
    split = tl.program_id(2)
    b64 = b.to(tl.int64)
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    t = m // RATIO
    head = g * RATIO + m % RATIO
    live = t < tokens
    d = tl.arange(0, SIZE)

    row = tl.load(index_rows + b).to(tl.int64)
    length = tl.load(lengths + row)
    past = tl.cdiv(length, KEYS)  # tiles of history
    tiles = past + tl.cdiv(tokens, OWN_KEYS)
    share = tl.cdiv(tiles, SPLITS)
    first = split * share
    last = tl.minimum(first + share, tiles)

    queries = tl.load(q + b64 * q_batch + t[:, None] * q_token + head[:, None] * SIZE + d[None, :], mask=live[:, None])
    queries = operand(queries)
    acc = tl.zeros((ROWS, SIZE), dtype=tl.float32)
    top = tl.full((ROWS,), LOWEST, dtype=tl.float32)
    total = tl.zeros((ROWS,), dtype=tl.float32)

    k_pool += g * SIZE
    v_pool += g * SIZE
    index += row * index_stride
    whole = tl.minimum(last, length // KEYS)
    for tile in range(first, whole):
        column = tile * KEYS + tl.arange(0, KEYS)
        keys, values = _history(k_pool, v_pool, index, column, k_pool_token, v_pool_token, SIZE)
        acc, top, total = _attend_tile(queries, keys, values, None, acc, top, total, scale)
    # Few tiles from here on: no load pipeline, whose buffers the history would miss.
    for tile in tl.range(tl.maximum(first, whole), tl.minimum(last, past), num_stages=1):
        column = tile * KEYS + tl.arange(0, KEYS)
        keys, values = _history(k_pool, v_pool, index, column, k_pool_token, v_pool_token, SIZE)
        acc, top, total = _attend_tile(queries, keys, values, column[None, :] >= length, acc, top, total, scale)

    k += b64 * k_batch + g * SIZE
    v += b64 * v_batch + g * SIZE
    mask += b64 * tokens * tokens
    for tile in tl.range(tl.maximum(first, past), last, num_stages=1):
        column = (tile - past) * OWN_KEYS + tl.arange(0, OWN_KEYS)
        inside = column < tokens
        keys = tl.load(k + column[None, :] * k_token + d[:, None], mask=inside[None, :], other=0.0)
        values = tl.load(v + column[:, None] * v_token + d[None, :], mask=inside[:, None], other=0.0)
        hidden = column[None, :] >= tokens
        if MASKED:
            here = live[:, None] & inside[None, :]
            hidden = tl.load(mask + t[:, None] * tokens + column[None, :], mask=here, other=0) == 0
        acc, top, total = _attend_tile(queries, keys, values, hidden, acc, top, total, scale)

    unseen = total == 0.0  # a split without keys
    total = tl.where(unseen, 1.0, total)
    acc = acc / total[:, None]
    place = ((split.to(tl.int64) * batch + b64) * tokens + t) * (GROUPS * RATIO) + head
    tl.store(out + place[:, None] * SIZE + d[None, :], narrow(acc, out.dtype.element_ty), mask=live[:, None])
    if SPLITS > 1:
        tl.store(weight + place, tl.where(unseen, float("-inf"), top + tl.log2(total)), mask=live)


@jit
def _merge_kernel(
    partial, weight, out, count, SIZE: tl.constexpr, SPLITS: tl.constexpr, PAD: tl.constexpr, ROWS: tl.constexpr
):
    """Averages the partial results of ROWS (row, token, head) triples, weighted by their sums of exponentials."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    s = tl.arange(0, PAD)
    d = tl.arange(0, SIZE)
    live = row < count
    place = s[None, :] * count + row[:, None]  # [ROWS, PAD]
    here = live[:, None] & (s < SPLITS)[None, :]
    # Rows beyond the end get a finite weight, so that no infinities are subtracted from each other.
    w = tl.load(weight + place, mask=here, other=float("-inf"))
    w = tl.where(live[:, None], w, 0.0)
    w = tl.exp2(w - tl.max(w, axis=1)[:, None])
    w = w / tl.sum(w, axis=1)[:, None]
    parts = tl.load(partial + place[:, :, None] * SIZE + d[None, None, :], mask=here[:, :, None], other=0.0)
    merged = tl.sum(parts * w[:, :, None], axis=1)
    tl.store(out + row[:, None] * SIZE + d[None, :], narrow(merged, out.dtype.element_ty), mask=live[:, None])
