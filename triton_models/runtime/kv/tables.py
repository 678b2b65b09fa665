"""Rows of a batch as one tensor: arrays of one shape, and page tables of different length."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..messages import HistoryView, Int64
from .pages import PageTable


def stack(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """[B, ..]; a batch of one is no copy."""
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)


def join(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """[B, ..] of rows [1, ..]; a batch of one is the row itself."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def stack_views(views: Sequence[HistoryView], multiple: int) -> dict[str, Int64]:
    """page_table [B, P] and page_range [B, P, 2], P a multiple of `multiple`.

    Shorter rows end in null pages of which nothing is visible.
    """
    longest = max([len(view.page_ids) for view in views])
    pages = -(-longest // multiple) * multiple
    table = np.zeros((len(views), pages), dtype=np.int64)  # null pages
    ranges = np.zeros((len(views), pages, 2), dtype=np.int64)
    for b, view in enumerate(views):
        table[b, : len(view.page_ids)] = view.page_ids
        ranges[b, : len(view.page_ids)] = view.ranges
    return {"page_table": table, "page_range": ranges}


def stack_tables(tables: Sequence[PageTable], multiple: int) -> tuple[Int64, Int64]:
    """`stack_views` of tables that are at hand. One row is not copied: it moves on with its table (`staged`)."""
    if len(tables) == 1:
        return tables[0].staged(multiple)
    stacked = stack_views([table.view() for table in tables], multiple)
    return stacked["page_table"], stacked["page_range"]


def page_multiple(page_tokens: int, head_dim: int) -> int:
    """Pages to which histories are padded, so that a row's numbers do not depend on how long its neighbours are.

    Masked keys add exact zeros, but they move a row's own keys, and a sum of floats depends on how it is cut. ONNX
    Runtime's matrix product sums over keys in panels of 128 * 128 / N, N being `head_dim` rounded up to 16, 32, 64 or
    128 (onnxruntime/core/mlas/lib/sgemm.cpp, MlasSgemmOperation), and its softmax in lanes that divide a panel. Padding
    by whole panels therefore changes no bit: batched equals solo exactly. It costs half a panel of masked keys a row on
    average (tiny: 0.15 ms of 2 ms in a call of one row).
    """
    columns = next((n for n in (16, 32, 64) if head_dim <= n), 128)
    panel = 128 * 128 // columns
    return math.lcm(panel, page_tokens) // page_tokens
