"""Histories of a batch: page tables of different length as two rectangular tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .kv_cache import NULL_PAGE
from .messages import HistoryView, Int64


def stack_views(views: Sequence[HistoryView]) -> dict[str, Int64]:
    """page_table [B, P] and page_range [B, P, 2]; shorter rows end in null pages of which nothing is visible."""
    longest = max(len(view.page_ids) for view in views)
    table = np.full((len(views), longest), NULL_PAGE, dtype=np.int64)
    ranges = np.zeros((len(views), longest, 2), dtype=np.int64)
    for b, view in enumerate(views):
        table[b, : len(view.page_ids)] = view.page_ids
        ranges[b, : len(view.page_ids)] = view.ranges
    return {"page_table": table, "page_range": ranges}
