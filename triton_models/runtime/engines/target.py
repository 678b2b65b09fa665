"""The KV link of a target: how thinker and performer come to share a pool, and where units are solved over it.

The thinker makes the pool and the performer maps it by name. `HostLink` is that of CPU engines (POSIX shared memory);
`gpu.serving.DeviceLink` that of GPU engines (CUDA IPC on one device, peer copies between two).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from engine_builder.config import ModelConfig

from ..kv.pool import KVPool, Pool, PoolError
from .solver import HostSolver, Solver

# Loading the engines of the other role comes first: gigabytes are read and hashed. Triton gives a model 300 s.
WAIT_SECONDS = 240.0

AnyPool = TypeVar("AnyPool", bound=Pool)


class Link(Protocol):
    """Methods raise PoolError, with the reason, for a pool that cannot be made or mapped."""

    def create(self, name: str, config: ModelConfig, pages: int, page_tokens: int) -> Pool:
        """The thinker's pool: zeroed, writable."""
        ...

    def open(self, name: str, config: ModelConfig, pages: int, page_tokens: int) -> Pool:
        """The performer's view of that pool; waits until the thinker has made it."""
        ...

    def solver(self, engine: Any, pool: Pool, slots: int) -> Solver:
        """Room for `slots` units that a perform engine solves over `pool`."""
        ...

    def rehearse(self, engines: Any, pool: Pool, solver: Solver | None) -> None:
        """Prepares the engines of an `EngineSet` for every size of call, so that no session waits for it later."""
        ...


class HostLink:
    """Pools in POSIX shared memory, units in host memory."""

    def create(self, name: str, config: ModelConfig, pages: int, page_tokens: int) -> Pool:
        return KVPool.create(name, config, pages, page_tokens)

    def open(self, name: str, config: ModelConfig, pages: int, page_tokens: int) -> Pool:
        return wait_for(lambda: KVPool.open(name, config))

    def solver(self, engine: Any, pool: Pool, slots: int) -> Solver:
        return HostSolver(engine.run, pool, pool.geometry.head_dim, slots)

    def rehearse(self, engines: Any, pool: Pool, solver: Solver | None) -> None:
        """Nothing: a CPU engine takes any size at any time."""


def wait_for(open_pool: Callable[[], AnyPool], seconds: float = WAIT_SECONDS) -> AnyPool:
    """The pool, once the other role has made it; its last PoolError after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return open_pool()
        except PoolError:  # not there yet, or not complete
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
