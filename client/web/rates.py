"""Token buckets: so much a second and a burst at once, for one user or for each of many."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

MAX_PEERS = 4096  # remembered; whoever has been quiet for longest is forgotten


class Bucket:
    """`rate` a second, `burst` at once. Pure policy; `clock` in seconds."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.burst = rate, burst
        self._clock = clock
        self._left, self._at = burst, clock()

    def take(self, amount: float = 1.0) -> bool:
        """Whether there was that much; if not, nothing is taken."""
        self._refill()
        if self._left < min(amount, self.burst):
            return False
        self._left -= amount
        return True

    def charge(self, amount: float = 1.0) -> float:
        """Takes it in any case. Returns the seconds after which the debt is paid, 0 if there is none."""
        self._refill()
        self._left -= amount
        return max(0.0, -self._left / self.rate)

    def _refill(self) -> None:
        now = self._clock()
        self._left = min(self.burst, self._left + (now - self._at) * self.rate)
        self._at = now


class Rates:
    """A bucket for each peer, by its address."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._make = lambda: Bucket(rate, burst, clock)
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def take(self, peer: str) -> bool:
        return self._of(peer).take()

    def charge(self, peer: str, amount: float) -> float:
        return self._of(peer).charge(amount)

    def _of(self, peer: str) -> Bucket:
        bucket = self._buckets.setdefault(peer, self._make())
        self._buckets.move_to_end(peer)
        while len(self._buckets) > MAX_PEERS:
            self._buckets.popitem(last=False)
        return bucket
