"""Pages of the KV pool: who owns which (`BlockManager`) and where each token of a session lives (`PageTable`).

Policy only. Tensors are the business of `kv_pool.py`; whoever frees pages here must scrub them there before the next
`allocate`. The thinker is the only allocator and runs in one thread, so nothing here locks.

A session has up to three streams of tokens, each contiguous over a list of pages:

    pinned    [prompt | sink units]            never evicted; under `full` it holds everything
    rolling   [.. unit k-2 | unit k-1 | unit k]   shrinks from the left by whole units
    language  the same for text and slots, only under `window_language`
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .messages import HistoryView, Int64, SessionError
from .retention import KINDS, Kind, Retention, WindowLanguage

NULL_PAGE = 0  # pads page tables of rows with a shorter history; never allocated, always zero


class OutOfPages(SessionError):
    """No page left for a session that was admitted: the pool is smaller than what admission promised."""

    def __init__(self, owner: str, needed: int, free: int, total: int) -> None:
        super().__init__(
            "RESOURCE_EXHAUSTED",
            f"kv pages: session {owner!r} needs {needed} more, {free} of {total} are free",
        )
        self.needed, self.free, self.total = needed, free, total


class TooManyPages(SessionError):
    """The engines were built for shorter histories than this session would have."""

    def __init__(self, owner: str, needed: int, limit: int) -> None:
        super().__init__(
            "RESOURCE_EXHAUSTED",
            f"kv pages: session {owner!r} needs {needed}, the engines take {limit} a session; "
            "keep less (options.retention), or build with a higher --max-pages",
        )


class BlockManager:
    """Hands out pages of `page_tokens` token positions. Invariant: free + used == total, no page has two owners.

    `total` leaves out the null page. Freed pages are reused last in, first out: memory that was never touched stays so.
    """

    def __init__(self, num_pages: int, page_tokens: int) -> None:
        if num_pages < 2:
            raise ValueError(f"num_pages: expected at least 2 (page 0 is the null page), got {num_pages}")
        if page_tokens < 1:
            raise ValueError(f"page_tokens: expected at least 1, got {page_tokens}")
        self.page_tokens = page_tokens
        self.total = num_pages - 1
        self._free = list(range(num_pages - 1, NULL_PAGE, -1))
        self._owned: dict[str, set[int]] = {}

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        return self.total - len(self._free)

    def owned(self, owner: str) -> frozenset[int]:
        """The pages of one owner; empty if it has none."""
        return frozenset(self._owned.get(owner, ()))

    def allocate(self, owner: str, count: int) -> list[int]:
        """`count` pages for `owner`, all or none. Raises OutOfPages."""
        if count < 0:
            raise ValueError(f"count: expected >= 0 pages, got {count}")
        if count > len(self._free):
            raise OutOfPages(owner, count, len(self._free), self.total)
        pages = [self._free.pop() for _ in range(count)]
        if pages:
            self._owned.setdefault(owner, set()).update(pages)
        return pages

    def release(self, owner: str, pages: Sequence[int] | None = None) -> list[int]:
        """Takes back some or (None) all pages of `owner`; returns them, to be scrubbed. ValueError if not its own."""
        held = self._owned.get(owner, set())
        back = sorted(held) if pages is None else list(pages)
        if len(set(back)) != len(back) or not held.issuperset(back):
            raise ValueError(f"pages: expected distinct pages of session {owner!r}, got {back}")
        held.difference_update(back)
        if not held:
            self._owned.pop(owner, None)
        self._free.extend(reversed(back))
        return back

    def check_integrity(self) -> None:
        """RuntimeError if a page is lost, free twice or owned twice. Cheap enough to run whenever the thinker idles."""
        seen: dict[int, str] = {}
        for owner, pages in [("<free>", self._free), *self._owned.items()]:
            for page in pages:
                if page in seen:
                    raise RuntimeError(f"page {page} belongs to {seen[page]!r} and to {owner!r}")
                if not NULL_PAGE < page <= self.total:
                    raise RuntimeError(f"page {page} of {owner!r} is not in the pool (1 to {self.total})")
                seen[page] = owner
        if len(seen) != self.total:
            raise RuntimeError(f"{self.free} free + {len(seen) - self.free} used pages, expected {self.total} in all")


@dataclass(frozen=True)
class Span:
    """`count` consecutive token positions of a page, from `offset`."""

    page: int
    offset: int
    count: int


@dataclass
class _Stream:
    """Tokens packed over `pages`: the first one stands at `start` of the first page and `length` follow each other."""

    pages: deque[int] = field(default_factory=deque)
    start: int = 0
    length: int = 0
    runs: deque[list[int]] = field(default_factory=deque)  # [unit, tokens], oldest first; empty for a pinned stream


class PageTable:
    """The history of one session. Per unit: `evict(unit)`, then `append` as often as tokens are committed."""

    def __init__(self, blocks: BlockManager, owner: str, retention: Retention, max_pages: int | None = None) -> None:
        """max_pages: that the engines take; None: any number"""
        self.owner = owner
        self._max_pages = max_pages
        self.retention = retention
        self.unit = -1  # the unit that evict() opened last; -1: only the prompt may be appended
        self._blocks = blocks
        self._pinned, self._rolling, self._language = _Stream(), _Stream(), _Stream()
        self._whole: tuple[Int64, Int64] | None = None  # all page ids and whole ranges, until the pages change

    @property
    def tokens(self) -> int:
        """Tokens in the history."""
        return sum(stream.length for stream in self._streams)

    @property
    def pages(self) -> int:
        return sum(len(stream.pages) for stream in self._streams)

    def append(self, kind: Kind, unit: int, count: int) -> list[Span]:
        """Makes room for `count` tokens after those of their stream; returns where they go, in order.

        `unit` is -1 for the prompt. Raises OutOfPages or TooManyPages, and then nothing has changed.
        """
        if kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
        if unit != self.unit or (kind == "prompt") != (unit < 0):
            raise ValueError(f"unit: expected {self.unit}, the one that evict() opened, got {unit} for {kind} tokens")
        if count < 0:
            raise ValueError(f"count: expected >= 0 tokens, got {count}")
        stream = self._stream_of(kind, unit)
        size = self._blocks.page_tokens
        end = stream.start + stream.length
        missing = max(-(-(end + count) // size) - len(stream.pages), 0)
        if self._max_pages is not None and missing and self.pages + missing > self._max_pages:
            raise TooManyPages(self.owner, self.pages + missing, self._max_pages)
        if missing:
            self._whole = None
            stream.pages.extend(self._blocks.allocate(self.owner, missing))
        stream.length += count
        if stream is not self._pinned and count:
            if stream.runs and stream.runs[-1][0] == unit:
                stream.runs[-1][1] += count
            else:
                stream.runs.append([unit, count])
        spans = []
        while count > 0:
            index, offset = divmod(end, size)
            fits = min(count, size - offset)
            spans.append(Span(stream.pages[index], offset, fits))
            end, count = end + fits, count - fits
        return spans

    def evict(self, unit: int) -> list[int]:
        """Opens `unit`: forgets what its block may not see. Returns the freed pages, to be scrubbed."""
        if unit <= self.unit:
            raise ValueError(f"unit: expected more than {self.unit}, the last one opened, got {unit}")
        self.unit = unit
        freed: list[int] = []
        kinds: tuple[tuple[_Stream, Kind], ...] = ((self._rolling, "av"), (self._language, "language"))
        for stream, kind in kinds:
            while stream.runs and not self.retention.visible(kind, stream.runs[0][0], unit):
                freed += self._shrink(stream, stream.runs.popleft()[1])
        if freed:
            self._whole = None
        return self._blocks.release(self.owner, freed)

    def view(self) -> HistoryView:
        """All visible tokens as page ids [P] and ranges [P, 2]; P >= 1: an empty history is one null page."""
        size = self._blocks.page_tokens
        if self._whole is None:  # else only the ends have moved since the last view
            pages = [page for stream in self._streams for page in stream.pages]
            ids = np.array(pages or [NULL_PAGE], dtype=np.int64)
            whole = np.zeros((len(ids), 2), dtype=np.int64)
            whole[: len(pages), 1] = size
            self._whole = ids, whole
        ids, whole = self._whole
        ranges = whole.copy()
        row = 0
        for stream in self._streams:
            if stream.pages:
                ranges[row, 0] = stream.start
                row += len(stream.pages)
                ranges[row - 1, 1] = stream.start + stream.length - (len(stream.pages) - 1) * size
        return HistoryView(ids, ranges)

    def close(self) -> list[int]:
        """Gives all pages back and returns them, to be scrubbed. A second call returns nothing."""
        self._pinned, self._rolling, self._language = _Stream(), _Stream(), _Stream()
        self._whole = None
        return self._blocks.release(self.owner)

    @property
    def _streams(self) -> tuple[_Stream, _Stream, _Stream]:
        return self._pinned, self._rolling, self._language

    def _stream_of(self, kind: Kind, unit: int) -> _Stream:
        if kind == "prompt" or self.retention.pinned(unit):
            return self._pinned
        # Apart only where the two kinds leave at different times: a stream shrinks from its left end alone.
        if kind == "language" and isinstance(self.retention, WindowLanguage):
            return self._language
        return self._rolling

    def _shrink(self, stream: _Stream, count: int) -> list[int]:
        """Drops the oldest `count` tokens of a stream; returns the pages that hold none any more."""
        stream.start += count
        stream.length -= count
        if stream.length == 0:
            freed = list(stream.pages)
            stream.pages.clear()
            stream.start = 0
            return freed
        freed = []
        while stream.start >= self._blocks.page_tokens:
            stream.start -= self._blocks.page_tokens
            freed.append(stream.pages.popleft())
        return freed
