"""The KV pool: K and V pages of every session. Thinker and performer of a stage read and write it in place.

`HostPool` is that of CPU engines; GPU engines have `gpu.cuda.device_pool`, which also knows the KV link between two
devices.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engine_builder.config import ModelConfig

from ..messages import Float32

NULL_PAGE = 0  # pads short page tables: never allocated, never written, always zero


class PoolError(RuntimeError):
    """The pool cannot be made or is not the one asked for; the message says what was expected and what was found."""


class PageRun(Protocol):
    """`count` consecutive token positions of `page` from `offset` on; `kv_cache.Span` is one."""

    @property
    def page(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def count(self) -> int: ...


class Pool(Protocol):
    """What thinker and performer ask of a pool, wherever its memory is."""

    @property
    def geometry(self) -> PoolGeometry: ...
    @property
    def k(self) -> Any:
        """[L, n_pages, page, Hkv, D] as the engines of the same target take it."""
        ...

    @property
    def v(self) -> Any: ...
    def write(self, spans: Sequence[PageRun], k_new: Any, v_new: Any, token_indices: NDArray[np.int64]) -> None: ...
    def scrub(self, pages: Iterable[int]) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class PoolGeometry:
    """What both ends of a KV link must agree on."""

    model_digest: str
    layers: int
    num_pages: int
    page_tokens: int
    kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, config: ModelConfig, num_pages: int, page_tokens: int, ranks: int = 1) -> PoolGeometry:
        """ranks: of a performer group, each of which holds its share of the heads."""
        if num_pages < 2:
            raise PoolError(f"num_pages: expected at least 2 (page 0 is the null page), got {num_pages}")
        if page_tokens < 1:
            raise PoolError(f"page_tokens: expected at least 1, got {page_tokens}")
        b = config.backbone
        return cls(config.digest(), b.layers, num_pages, page_tokens, b.kv_heads // ranks, b.head_dim)

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Shape of k and of v: [L, n_pages, page, Hkv, D]."""
        return self.layers, self.num_pages, self.page_tokens, self.kv_heads, self.head_dim

    @property
    def bytes(self) -> int:
        """Of k and v together, in float32."""
        return 2 * int(np.prod(self.shape, dtype=np.int64)) * np.dtype(np.float32).itemsize


class HostPool:
    """Arrays `k` and `v`, float32 [L, n_pages, page, Hkv, D]. The thinker writes; the performer looks at a page once
    the job that names it has come, which orders the two."""

    def __init__(self, config: ModelConfig, num_pages: int, page_tokens: int) -> None:
        """A zeroed pool, whose memory is taken as pages are written. PoolError if the machine has no room for it."""
        self.geometry = PoolGeometry.of(config, num_pages, page_tokens)
        try:
            self.k: Float32 = np.zeros(self.geometry.shape, np.float32)
            self.v: Float32 = np.zeros(self.geometry.shape, np.float32)
        except MemoryError:
            size = self.geometry.bytes / 2**20
            raise PoolError(
                f"pool: expected {size:.1f} MiB of memory for {num_pages} pages of {page_tokens} tokens, got less; "
                "lower the number of pages"
            ) from None

    def write(self, spans: Sequence[PageRun], k_new: Float32, v_new: Float32, token_indices: NDArray[np.int64]) -> None:
        """Copies tokens `token_indices` of k_new and v_new [L, T, Hkv, D] to `spans`, in order.

        `ValueError` if the spans do not hold exactly these tokens, leave their page or touch the null page.
        """
        check_spans(self.geometry, spans, len(token_indices))
        tokens: list[int] = token_indices.tolist()
        at = 0
        for span in spans:
            place, stop = span.offset, at + span.count
            while at < stop:  # by runs of tokens that follow each other: slices, where a list would be gathered first
                first = end = tokens[at]
                while at < stop and tokens[at] == end:
                    at, end = at + 1, end + 1
                self.k[:, span.page, place : place + end - first] = k_new[:, first:end]
                self.v[:, span.page, place : place + end - first] = v_new[:, first:end]
                place += end - first

    def scrub(self, pages: Iterable[int]) -> None:
        """Zeroes pages, so that their next owner cannot see what was in them."""
        for page in pages:
            if not NULL_PAGE < page < self.geometry.num_pages:
                raise ValueError(f"pages: expected 1..{self.geometry.num_pages - 1}, got {page}")
            self.k[:, page] = 0
            self.v[:, page] = 0

    def close(self) -> None:
        """Lets go of the memory, as soon as no engine holds an array of it."""
        self.k = self.v = np.empty((0,) * 5, dtype=np.float32)


def check_spans(geometry: PoolGeometry, spans: Sequence[PageRun], tokens: int) -> None:
    """ValueError if the spans do not hold exactly so many tokens, leave their page or touch the null page."""
    held = 0
    for span in spans:
        inside = span.offset >= 0 and span.count >= 0 and span.offset + span.count <= geometry.page_tokens
        if not (NULL_PAGE < span.page < geometry.num_pages and inside):
            pages = f"pages 1..{geometry.num_pages - 1} of {geometry.page_tokens} tokens"
            raise ValueError(f"spans: expected {pages}, got {span}")
        held += span.count
    if held != tokens:
        raise ValueError(f"spans: expected room for {tokens} tokens, got {held}")
