"""Pages of the KV pool: who owns which (`BlockManager`) and where each token of a session lives (`PageTable`).

Policy only. Tensors are the business of `pool.py`; whoever frees pages here must scrub them there before the next
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
from typing import NamedTuple

import numpy as np

from ..messages import HistoryView, Int64, SessionError
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


class Span(NamedTuple):
    """`count` consecutive token positions of a page, from `offset`."""

    page: int
    offset: int
    count: int


@dataclass(eq=False)
class _Stream:
    """Tokens packed over `pages`: the first one stands at `start` of the first page and `length` follow each other."""

    pages: deque[int] = field(default_factory=deque)
    start: int = 0
    length: int = 0
    runs: deque[list[int]] = field(default_factory=deque)  # [unit, tokens], oldest first; empty for a pinned stream
    row: int = 0  # of its first page in the staged table, while there is one


class PageTable:
    """The history of one session. Per unit: `evict(unit)`, then `append` as often as tokens are committed."""

    def __init__(self, blocks: BlockManager, owner: str, retention: Retention, max_pages: int | None = None) -> None:
        """max_pages: that the engines take; None: any number"""
        self.owner = owner
        self._max_pages = max_pages
        self.retention = retention
        self.unit = -1  # the unit that evict() opened last; -1: only the prompt may be appended
        self._blocks = blocks
        self._multiple = 1  # of pages in the staged table
        self._clear()

    @property
    def tokens(self) -> int:
        """Tokens in the history."""
        return sum(stream.length for stream in self._streams)

    @property
    def pages(self) -> int:
        return len(self._pinned.pages) + len(self._rolling.pages) + len(self._language.pages)

    def append(self, kind: Kind, unit: int, count: int) -> list[Span]:
        """Makes room for `count` tokens after those of their stream; returns where they go, in order.

        `unit` is -1 for the prompt. Raises OutOfPages or TooManyPages, and then nothing has changed.
        """
        stream = self._homes.get(kind)
        if stream is None or unit != self.unit or count < 0:
            raise self._misuse(kind, unit, count)
        size = self._blocks.page_tokens
        end = stream.start + stream.length
        missing = -(-(end + count) // size) - len(stream.pages)
        if missing > 0:
            self._extend(stream, missing)
        stream.length += count
        if stream is not self._pinned and count:
            if stream.runs and stream.runs[-1][0] == unit:
                stream.runs[-1][1] += count
            else:
                stream.runs.append([unit, count])
        spans = []
        while count > 0:
            index = end // size
            offset = end - index * size
            fits = count if offset + count <= size else size - offset
            spans.append(Span(stream.pages[index], offset, fits))
            if self._staged is not None:
                self._staged[1][0, stream.row + index, 1] = offset + fits
            end, count = end + fits, count - fits
        return spans

    def evict(self, unit: int) -> list[int]:
        """Opens `unit`: forgets what its block may not see. Returns the freed pages, to be scrubbed."""
        if unit <= self.unit:
            raise ValueError(f"unit: expected more than {self.unit}, the last one opened, got {unit}")
        self._open(unit)
        freed: list[int] = []
        for stream, kind in self._windows:
            while stream.runs and not self.retention.visible(kind, stream.runs[0][0], unit):
                freed += self._shrink(stream, stream.runs.popleft()[1])
        return self._blocks.release(self.owner, freed) if freed else freed

    def staged(self, multiple: int) -> tuple[Int64, Int64]:
        """All visible tokens as engines take them: page_table [1, P], page_range [1, P, 2], the end in null pages.

        P is the next multiple of `multiple`, at least one. They are the table's own arrays and move on with it: a slot
        adds one to one number of them. Whoever keeps them asks for a `view`.
        """
        if self._staged is None or self._multiple != multiple:
            self._multiple = multiple
            self._staged = self._stage()
        return self._staged

    def view(self) -> HistoryView:
        """All visible tokens as page ids [P] and ranges [P, 2]; P >= 1: an empty history is one null page."""
        table, ranges = self.staged(self._multiple)
        pages = self.pages or 1
        return HistoryView(table[0, :pages].copy(), ranges[0, :pages].copy())

    def close(self) -> list[int]:
        """Gives all pages back and returns them, to be scrubbed. A second call returns nothing."""
        self._clear()
        return self._blocks.release(self.owner)

    def _clear(self) -> None:
        self._pinned, self._rolling, self._language = _Stream(), _Stream(), _Stream()
        self._streams = self._pinned, self._rolling, self._language  # as they follow each other in a view
        self._windows: tuple[tuple[_Stream, Kind], ...] = ((self._rolling, "av"), (self._language, "language"))
        self._staged: tuple[Int64, Int64] | None = None  # see `staged`; None: the pages have changed
        self._open(self.unit)

    def _open(self, unit: int) -> None:
        """From now on tokens of `unit` may come; where they go is found once, not at every `append`."""
        self.unit = unit
        self._homes: dict[Kind, _Stream] = {"prompt": self._pinned}
        if unit >= 0:
            home = self._pinned if self.retention.pinned(unit) else self._rolling
            # Apart only where the two kinds leave at different times: a stream shrinks from its left end alone.
            apart = home is self._rolling and isinstance(self.retention, WindowLanguage)
            self._homes = {"av": home, "language": self._language if apart else home}

    def _extend(self, stream: _Stream, missing: int) -> None:
        """Gives a stream `missing` more pages. Raises TooManyPages or OutOfPages, and then nothing has changed."""
        row = self.pages
        if self._max_pages is not None and row + missing > self._max_pages:
            raise TooManyPages(self.owner, row + missing, self._max_pages)
        pages = self._blocks.allocate(self.owner, missing)
        stream.pages.extend(pages)
        if self._staged is not None:
            table, _ = self._staged
            if stream.row + len(stream.pages) == row + missing <= table.shape[1]:  # nothing follows, and there is room
                table[0, row : row + missing] = pages
                for later in self._streams[self._streams.index(stream) + 1 :]:
                    later.row = row + missing
            else:
                self._staged = None

    def _stage(self) -> tuple[Int64, Int64]:
        size = self._blocks.page_tokens
        pages = [page for stream in self._streams for page in stream.pages]
        width = -(-max(len(pages), 1) // self._multiple) * self._multiple
        table = np.zeros((1, width), dtype=np.int64)  # null pages
        ranges = np.zeros((1, width, 2), dtype=np.int64)
        table[0, : len(pages)] = pages
        ranges[0, : len(pages), 1] = size
        row = 0
        for stream in self._streams:  # only the ends of a stream are not whole pages
            stream.row = row
            if stream.pages:
                ranges[0, row, 0] = stream.start
                row += len(stream.pages)
                ranges[0, row - 1, 1] = stream.start + stream.length - (len(stream.pages) - 1) * size
        return table, ranges

    def _misuse(self, kind: str, unit: int, count: int) -> ValueError:
        if kind not in KINDS:
            return ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
        if count < 0:
            return ValueError(f"count: expected >= 0 tokens, got {count}")
        return ValueError(f"unit: expected {self.unit}, the one that evict() opened, got {unit} for {kind} tokens")

    def _shrink(self, stream: _Stream, count: int) -> list[int]:
        """Drops the oldest `count` tokens of a stream; returns the pages that hold none any more."""
        stream.start += count
        stream.length -= count
        freed: list[int] = []
        if stream.length == 0:
            freed = list(stream.pages)
            stream.pages.clear()
            stream.start = 0
        while stream.start >= self._blocks.page_tokens:
            stream.start -= self._blocks.page_tokens
            freed.append(stream.pages.popleft())
        if freed:
            self._staged = None
        elif self._staged is not None:
            self._staged[1][0, stream.row, 0] = stream.start
        return freed
