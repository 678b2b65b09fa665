"""Where a unit's noisy latents live between its noise and its last solver step, and who takes the steps.

`HostSolver` keeps them in host memory and hands everything to the engine at every step, which costs nothing where the
engine runs on the same processor. A GPU keeps them on the device (`solver_bank.py` of each GPU target).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..kv.pool import Pool
from ..kv.tables import page_multiple, stack, stack_views
from ..messages import Float32, HistoryView


class SolverFull(RuntimeError):
    """Every slot is taken; the message says how many there are."""


class Solver(Protocol):
    """Units in flight. A slot belongs to a unit from `put` to `drop`; one thread calls a Solver."""

    @property
    def engine_ns(self) -> int:
        """Inside engine calls so far."""
        ...

    def put(self, x_video: Float32, x_audio: Float32, cos: Float32, sin: Float32, view: HistoryView) -> int:
        """Takes noise [n_v, c_v], [n_a, c_a], RoPE tables [n, D / 2] and a history; the slot. Raises SolverFull."""
        ...

    def tick(self, slots: Sequence[int], taus: Sequence[float], steps: Sequence[float]) -> Iterable[bool]:
        """One Euler step x += step * velocity(x, tau) of each named slot; B truths: False where it is not finite.

        Where looking costs something it need not look: what is not finite stays so, and who takes it looks anyway.
        """
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


@dataclass(eq=False)
class _Batch:
    """The rows of the last tick, which most often are those of the next one: their latents live in its inputs.

    Between two engine calls caches are cold, so an Euler step touches as little as it can: nothing is made again that
    was there, all rows are one numpy operation, and nobody looks for NaN before the last step.
    """

    slots: tuple[int, ...]
    inputs: dict[str, Any]  # of the engine; x_video, x_audio and tau change with every tick
    steps: Float32  # [B], the lengths of the Euler steps
    scale: Float32  # a view of `steps` that multiplies latents: [] or [B, 1, 1], numpy is quickest with the former


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
        self._batch: _Batch | None = None

    def put(self, x_video: Float32, x_audio: Float32, cos: Float32, sin: Float32, view: HistoryView) -> int:
        if not self._free:
            raise SolverFull(f"units: all {self._slots} slots of the performer are taken")
        slot = self._free.pop()
        self._units[slot] = _Unit(x_video, x_audio, cos, sin, view)
        return slot

    def tick(self, slots: Sequence[int], taus: Sequence[float], steps: Sequence[float]) -> Iterable[bool]:
        """Raises what the engine raises; the units are then as they were."""
        batch = self._batch
        if batch is None or batch.slots != tuple(slots):
            batch = self._gather(slots)
        inputs = batch.inputs
        for b, tau in enumerate(taus):
            inputs["tau"][b], batch.steps[b] = tau, steps[b]
        begin = time.perf_counter_ns()
        out = self._run(inputs)
        self.engine_ns += time.perf_counter_ns() - begin
        for name, velocity in (("x_video", "velocity_video"), ("x_audio", "velocity_audio")):
            x = out[velocity]  # an array of our own: velocity, then step, then where it leads
            x *= batch.scale
            x += inputs[name]
            inputs[name] = x
        return [True] * len(slots)

    def take(self, slot: int) -> tuple[Float32, Float32]:
        self._scatter()
        unit = self._units[slot]
        return unit.x_video, unit.x_audio

    def drop(self, slot: int) -> None:
        self._scatter()
        del self._units[slot]
        self._free.append(slot)

    def _gather(self, slots: Sequence[int]) -> _Batch:
        """Makes the batch of these slots."""
        self._scatter()
        units = [self._units[slot] for slot in slots]
        steps = np.empty(len(units), dtype=np.float32)
        inputs = {
            "x_video": stack([unit.x_video for unit in units]),
            "x_audio": stack([unit.x_audio for unit in units]),
            "tau": np.empty(len(units), dtype=np.float32),
            "rope_cos": stack([unit.cos for unit in units]),
            "rope_sin": stack([unit.sin for unit in units]),
            **stack_views([unit.view for unit in units], self._page_multiple),
            "k_pool": self._pool.k,
            "v_pool": self._pool.v,
        }
        scale = steps.reshape(() if len(units) == 1 else (-1, 1, 1))
        self._batch = _Batch(tuple(slots), inputs, steps, scale)
        return self._batch

    def _scatter(self) -> None:
        """Gives the latents of the batch back to its units."""
        batch, self._batch = self._batch, None
        if batch is None:
            return
        x_video, x_audio = batch.inputs["x_video"], batch.inputs["x_audio"]
        if len(batch.slots) > 1:  # a view would keep the whole batch alive
            x_video, x_audio = [x.copy() for x in x_video], [x.copy() for x in x_audio]
        for b, slot in enumerate(batch.slots):
            self._units[slot].x_video, self._units[slot].x_audio = x_video[b], x_audio[b]
