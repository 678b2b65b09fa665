"""What a target brings besides its steps: the pool, a solver over it, and a rehearsal of every size of call.

`HostTarget` is that of CPU engines, `gpu.serving.DeviceTarget` that of GPU engines.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np

from engine_builder.config import ModelConfig

from ..kv.pool import HostPool, Pool
from .solver import HostSolver, Solver
from .states import HostStates, States

Role = Literal["both", "thinker", "performer"]  # of a stage


class Target(Protocol):
    def pool(self, role: Role, name: str, config: ModelConfig, pages: int, page_tokens: int) -> Pool:
        """The zeroed pool of a stage. Two stages of one `name` find each other: the thinker's copies what it writes to
        the performer's, for which it waits. Raises PoolError."""
        ...

    def solver(self, engine: Any, pool: Pool, slots: int) -> Solver:
        """Room for `slots` units that a perform engine solves over `pool`."""
        ...

    def states(self, engine: Any, start: np.ndarray, sessions: int) -> States:
        """Of up to `sessions` sessions of perceive or render, which begin with `start` [S]."""
        ...

    def rehearse(self, engines: Any, pool: Pool, solver: Solver | None) -> None:
        """Prepares the engines of an `EngineSet` for every size of call, so that no session waits for it later."""
        ...

    def fault(self) -> str:
        """What is wrong with processes that work for this one, or nothing. From any thread."""
        ...

    def close(self) -> None:
        """Ends them."""
        ...


class HostTarget:
    """One pool in the memory of the one stage, units in host memory."""

    def pool(self, role: Role, name: str, config: ModelConfig, pages: int, page_tokens: int) -> Pool:
        if role != "both":
            raise ValueError(f"role: expected both of a stage on a CPU, got {role}")
        return HostPool(config, pages, page_tokens)

    def solver(self, engine: Any, pool: Pool, slots: int) -> Solver:
        return HostSolver(engine.run, pool, pool.geometry.head_dim, slots)

    def states(self, engine: Any, start: np.ndarray, sessions: int) -> States:
        return HostStates(engine, start)

    def rehearse(self, engines: Any, pool: Pool, solver: Solver | None) -> None:
        """Nothing: a CPU engine takes any size at any time."""

    def fault(self) -> str:
        return ""

    def close(self) -> None:
        """Nothing: there is one process."""
