"""How calls are rounded up, so that few shapes occur and each can have a CUDA graph."""

from __future__ import annotations

from dataclasses import dataclass

from triton_models.runtime.engine import EngineError

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
