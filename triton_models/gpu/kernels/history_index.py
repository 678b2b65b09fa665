"""Where the visible history of each row lies in the pool, token by token.

Page tables name pages and ranges; the attention kernel wants the n-th visible token without a search. One small kernel
a pass turns the former into the latter: 4 bytes a token, read by all layers and, in the performer, by all solver steps.
Empty pages and the hidden ends of partly visible ones vanish here, so no later kernel looks at them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .jit import ceil_div, jit, next_power_of_2, tl

PAGES_AT_ONCE = 64
TILE = 128  # the largest key tile of the attention kernel: token lists are padded to whole tiles


@dataclass(frozen=True)
class HistoryIndex:
    """`tokens` int32 [rows, S]: pool positions (page * page_tokens + offset) of the visible tokens of a row, in order,
    then zeros, which point at the null page. `lengths` int32 [rows]: how many are visible. `order` int32 [rows]: 0, 1,
    ...: each batch row uses its own history."""

    tokens: Tensor
    lengths: Tensor
    order: Tensor

    @classmethod
    def empty(cls, rows: int, pages: int, page_tokens: int, device: torch.device | str) -> HistoryIndex:
        """Room for histories of up to `pages` pages; nothing is visible yet."""
        width = ceil_div(pages * page_tokens, TILE) * TILE
        return cls(
            torch.zeros(rows, width, dtype=torch.int32, device=device),
            torch.zeros(rows, dtype=torch.int32, device=device),
            torch.arange(rows, dtype=torch.int32, device=device),
        )

    def narrow(self, pages: int, page_tokens: int) -> HistoryIndex:
        """The same lists, cut where no row of a call has tokens: what attention splits its work by."""
        width = ceil_div(pages * page_tokens, TILE) * TILE
        return HistoryIndex(self.tokens[:, :width], self.lengths, self.order)

    def fill(self, page_table: Tensor, page_range: Tensor, page_tokens: int, rows: Tensor | None = None) -> None:
        """Lists the visible tokens of page_table int64 [B, P] with page_range int64 [B, P, 2]; B may not exceed rows.

        rows: int32 [B], where each list goes; None: to rows 0 .. B - 1. Raises ValueError if the histories do not fit.
        """
        batch, pages = page_table.shape
        if batch > self.tokens.shape[0] or pages * page_tokens > self.tokens.shape[1]:
            raise ValueError(
                f"page_table: expected at most {self.tokens.shape[0]} rows of "
                f"{self.tokens.shape[1] // page_tokens} pages, got {batch} of {pages}"
            )
        rows = self.order[:batch] if rows is None else rows
        self.tokens.index_fill_(0, rows.long(), 0)
        if page_table.stride(1) != 1 or page_range.stride()[1:] != (2, 1):
            raise ValueError("page_table, page_range: expected the last axes without gaps")
        _fill_kernel[(batch,)](
            page_table,
            page_range,
            rows,
            self.tokens,
            self.lengths,
            pages,
            page_table.stride(0),
            page_range.stride(0),
            self.tokens.stride(0),
            PAGE=page_tokens,
            PAGE_BLOCK=next_power_of_2(page_tokens),
            PAGES=PAGES_AT_ONCE,
        )


@jit
def _fill_kernel(
    page_table,
    page_range,
    rows,
    tokens,
    lengths,
    pages,
    table_stride,
    range_stride,
    tokens_stride,
    PAGE: tl.constexpr,
    PAGE_BLOCK: tl.constexpr,
    PAGES: tl.constexpr,
):
    """One program a row: a running sum of the visible counts says where the tokens of each page go."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(rows + row).to(tl.int64)
    offset = tl.arange(0, PAGE_BLOCK)
    done = tl.zeros((), dtype=tl.int32)
    for start in range(0, pages, PAGES):
        p = start + tl.arange(0, PAGES)
        here = p < pages
        page = tl.load(page_table + row * table_stride + p, mask=here, other=0).to(tl.int32)
        first = tl.load(page_range + row * range_stride + 2 * p, mask=here, other=0).to(tl.int32)
        last = tl.load(page_range + row * range_stride + 2 * p + 1, mask=here, other=0).to(tl.int32)
        first = tl.maximum(first, 0)
        count = tl.maximum(tl.minimum(last, PAGE) - first, 0)
        begin = done + tl.cumsum(count, axis=0) - count
        where = tokens + target * tokens_stride + begin[:, None] + offset[None, :]
        tl.store(where, (page * PAGE + first)[:, None] + offset[None, :], mask=offset[None, :] < count[:, None])
        done += tl.sum(count, axis=0)
    tl.store(lengths + target, done)
