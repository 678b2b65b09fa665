"""Where a unit's noisy latents live between its noise and its last solver step, and who takes the steps.

`HostSolver` keeps them in host memory and hands everything to the engine at every step, which costs nothing where the
engine runs on the same processor. A GPU keeps them on the device (`gpu.solver_bank`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .history import page_multiple, stack, stack_views
from .kv_pool import Pool
from .messages import Float32, HistoryView
from .validate import finite


class SolverFull(RuntimeError):
    """Every slot is taken; the message says how many there are."""


class Solver(Protocol):
    """Units in flight. A slot belongs to a unit from `put` to `drop`; one thread calls a Solver."""

    engine_ns: int  # inside engine calls so far

    def put(self, x_video: Float32, x_audio: Float32, cos: Float32, sin: Float32, view: HistoryView) -> int:
        """Takes noise [n_v, c_v], [n_a, c_a], RoPE tables [n, D / 2] and a history; the slot. Raises SolverFull."""
        ...

    def tick(self, slots: Sequence[int], taus: Sequence[float], steps: Sequence[float]) -> NDArray[np.bool_]:
        """One Euler step x += step * velocity(x, tau) of each named slot; bool [B]: False where it is not finite."""
        ...

    def take(self, slot: int) -> tuple[Float32, Float32]:
        """The latents of a slot now: [n_v, c_v], [n_a, c_a]."""
        ...

    def drop(self, slot: int) -> None:
        """Gives a slot back."""
        ...


@dataclass(eq=False)
class _Unit:
    x_video: Float32
    x_audio: Float32
    cos: Float32
    sin: Float32
    view: HistoryView


class HostSolver:
    """A `Solver` over the `run` of a perform engine; up to `slots` units."""

    def __init__(
        self, run: Callable[[Mapping[str, Any]], Mapping[str, Any]], pool: Pool, head_dim: int, slots: int
    ) -> None:
        self._run, self._pool = run, pool
        self._page_multiple = page_multiple(pool.geometry.page_tokens, head_dim)
        self._units: dict[int, _Unit] = {}
        self._free = list(range(slots - 1, -1, -1))
        self._slots = slots
        self.engine_ns = 0
        self._staged: tuple[tuple[int, ...], dict[str, Any]] = ((), {})  # what a batch keeps over its solver steps

    def put(self, x_video: Float32, x_audio: Float32, cos: Float32, sin: Float32, view: HistoryView) -> int:
        if not self._free:
            raise SolverFull(f"units: all {self._slots} slots of the performer are taken")
        slot = self._free.pop()
        self._units[slot] = _Unit(x_video, x_audio, cos, sin, view)
        return slot

    def tick(self, slots: Sequence[int], taus: Sequence[float], steps: Sequence[float]) -> NDArray[np.bool_]:
        """Raises what the engine raises; the units are then as they were."""
        units = [self._units[slot] for slot in slots]
        if self._staged[0] != tuple(slots):
            self._staged = tuple(slots), self._stage(units)
        inputs = {
            "x_video": stack([unit.x_video for unit in units]),
            "x_audio": stack([unit.x_audio for unit in units]),
            "tau": np.array(taus, dtype=np.float32),
            **self._staged[1],
        }
        begin = time.perf_counter_ns()
        out = self._run(inputs)
        self.engine_ns += time.perf_counter_ns() - begin
        fine = np.ones(len(units), dtype=bool)
        for b, (unit, step) in enumerate(zip(units, steps, strict=True)):
            v_video, v_audio = out["velocity_video"][b], out["velocity_audio"][b]
            fine[b] = finite(v_video) and finite(v_audio)
            if fine[b]:
                unit.x_video = unit.x_video + np.float32(step) * v_video
                unit.x_audio = unit.x_audio + np.float32(step) * v_audio
        return fine

    def take(self, slot: int) -> tuple[Float32, Float32]:
        return self._units[slot].x_video, self._units[slot].x_audio

    def drop(self, slot: int) -> None:
        del self._units[slot]
        self._free.append(slot)
        if slot in self._staged[0]:
            self._staged = (), {}

    def _stage(self, units: Sequence[_Unit]) -> dict[str, Any]:
        return {
            "rope_cos": stack([unit.cos for unit in units]),
            "rope_sin": stack([unit.sin for unit in units]),
            **stack_views([unit.view for unit in units], self._page_multiple),
            "k_pool": self._pool.k,
            "v_pool": self._pool.v,
        }
