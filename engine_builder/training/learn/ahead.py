"""Examples made ahead of the step that wants them, by a thread of their own."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_READY = 3  # made ahead


def ahead(make: Callable[[int], T], first: int = 0) -> Generator[T]:
    """make(first), make(first + 1), ... in order, whatever the thread's timing, until the generator is closed."""
    pool = ThreadPoolExecutor(1, "ahead")
    ready = deque(pool.submit(make, first + i) for i in range(_READY))
    try:
        for number in itertools.count(first + _READY):
            yield ready.popleft().result()
            ready.append(pool.submit(make, number))
    finally:
        pool.shutdown(cancel_futures=True)
