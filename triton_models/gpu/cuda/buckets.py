"""How calls are rounded up, so that few shapes occur and each can have a CUDA graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from triton_models.runtime.engines.engine import EngineError
from triton_models.runtime.messages import HistoryView

MIN_PAGES = 64  # the smallest history bucket; below it attention is no cost worth another graph


@dataclass(frozen=True)
class Limits:
    """What the buckets must cover."""

    max_batch: int
    max_pages: int

    def rows(self, batch: int) -> int:
        """The batch bucket of `batch` rows: a power of two, or the limit."""
        if not 1 <= batch <= self.max_batch:
            raise EngineError(
                f"batch: expected 1 to {self.max_batch} rows, got {batch}; build with a higher --max-batch"
            )
        return min(self.max_batch, 1 << (batch - 1).bit_length())

    def pages(self, pages: int) -> int:
        """The history bucket of `pages` pages: MIN_PAGES times a power of two, or the limit."""
        if not 1 <= pages <= self.max_pages:
            raise EngineError(f"pages: expected 1 to {self.max_pages}, got {pages}; build with a higher --max-pages")
        bucket = MIN_PAGES
        while bucket < pages:
            bucket *= 2
        return min(self.max_pages, bucket)

    def all_rows(self) -> list[int]:
        """Every batch bucket."""
        return sorted({self.rows(n) for n in range(1, self.max_batch + 1)})

    def all_pages(self) -> list[int]:
        """Every history bucket."""
        buckets = [min(MIN_PAGES, self.max_pages)]
        while buckets[-1] < self.max_pages:
            buckets.append(self.pages(buckets[-1] + 1))
        return buckets


def check_pages(view: HistoryView, pool_pages: int) -> None:
    """EngineError if a history has no page, or one outside of the pool, which would read another's memory."""
    ids = view.page_ids
    if len(ids) == 0 or ids.min() < 0 or ids.max() >= pool_pages:
        raise EngineError(f"page_ids: expected pages 0 to {pool_pages - 1}, got {ids}")


def used_pages(page_range: np.ndarray) -> int:
    """Columns of page_range [B, P, 2] up to the last of which a row sees something; at least 1.

    The runtime pads page tables as a CPU engine likes them; here they would only fill a larger bucket.
    """
    seen = (page_range[..., 1] > page_range[..., 0]).any(axis=0)
    return int(seen.nonzero()[0][-1]) + 1 if seen.any() else 1
