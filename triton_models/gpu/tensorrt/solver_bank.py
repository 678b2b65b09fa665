"""Noisy latents between their first and their last solver step, on the device: two numbers a row travel a tick.

A unit gets a slot: its noise, RoPE tables and history are uploaded once (`put`). The plan takes the Euler step itself,
and its graph copies the result over its input, so a tick of the same slots as the last one moves nothing else; other
slots are gathered first, by copies on the device.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from triton_models.runtime.engines.engine import EngineError
from triton_models.runtime.engines.solver import SolverFull
from triton_models.runtime.messages import Float32, HistoryView

from ..cuda.buckets import Limits, check_pages
from ..cuda.cuda_runtime import CudaRuntime, DeviceArray
from ..cuda.staging import HostBlock, Layout, Slot
from .call import Call, Copies

NOISY = ("x_video", "x_audio")  # what a step changes
UNIT = (*NOISY, "rope_cos", "rope_sin", "page_table", "page_range")
OUTPUTS = {"velocity_video": "x_video", "velocity_audio": "x_audio", "x_video_out": "x_video", "x_audio_out": "x_audio"}


Shapes = dict[str, tuple[int, ...]]


class Plan(Protocol):
    """What a bank asks of a perform engine."""

    step: str
    cuda: CudaRuntime
    dtypes: dict[str, str]

    def resolve(self, symbols: Mapping[str, int]) -> Shapes: ...
    def prepare(self, shapes: Shapes, bound: Mapping[str, DeviceArray], after: Copies = ()) -> Call: ...


class PlanBank:
    """A `runtime.engines.solver.Solver`: up to `slots` units in flight over one pool. One thread calls it."""

    def __init__(self, engine: Plan, limits: Limits, pools: dict[str, DeviceArray], slots: int) -> None:
        self._engine, self._cuda, self._limits, self._pools = engine, engine.cuda, limits, pools
        self.slots = slots
        self.engine_ns = 0
        self._free = list(range(slots - 1, -1, -1))
        self._pages = np.zeros(slots, dtype=np.int64)  # of a slot's history
        self._loaded: tuple[int, ...] = ()  # whose latents lie in the inputs of the plan, and not in their slots
        self._bucket = (0, 0)  # rows and pages of the call that they lie there for
        self._calls: dict[tuple[int, int], Call] = {}
        _, k_pages, page_tokens, *_ = pools["k_pool"].shape
        self._symbols = {"pool_pages": k_pages, "page_tokens": page_tokens}
        one = self._shapes(1, limits.max_pages)
        self._layout = Layout({n: Slot(one[n], engine.dtypes[n], n.startswith("page")) for n in UNIT})
        self._units = self._cuda.allocate((slots, self._layout.bytes), "uint8")
        self._pinned, memory = self._cuda.pinned(self._layout.bytes)
        self._host = HostBlock(self._layout, memory)
        whole = self._shapes(limits.max_batch, limits.max_pages)
        self._batch = {n: self._cuda.allocate(whole[n], engine.dtypes[n]) for n in UNIT}
        self._batch |= {n: self._cuda.allocate(whole[x], engine.dtypes[n]) for n, x in OUTPUTS.items()}

    def put(self, x_video: Float32, x_audio: Float32, cos: Float32, sin: Float32, view: HistoryView) -> int:
        """Fills a slot: latents [n_v, c_v], [n_a, c_a], RoPE tables [n, D / 2] and a history. Raises SolverFull, or
        EngineError for what does not fit."""
        check_pages(view, self._symbols["pool_pages"])
        self._limits.pages(len(view.page_ids))
        if not self._free:
            raise SolverFull(f"units: all {self.slots} slots of the performer are taken")
        values = (x_video, x_audio, cos, sin, view.page_ids, view.ranges)
        try:
            self._host.fill({name: value[None] for name, value in zip(UNIT, values, strict=True)}, 1)
        except ValueError as error:
            raise EngineError(f"{self._engine.step}: {error}") from None
        self._cuda.bind_thread()
        slot = self._free.pop()
        self._cuda.copy(self._place(slot), self._pinned, self._layout.bytes)
        self._cuda.synchronize()  # the staging buffer is filled again by the next put
        self._pages[slot] = len(view.page_ids)
        return slot

    def tick(self, slots: Sequence[int], taus: Sequence[float], steps: Sequence[float]) -> Sequence[bool]:
        """One Euler step x += step * velocity(x, tau) of each named slot. What is not finite stays so: who takes it
        looks."""
        begin = time.perf_counter_ns()
        self._cuda.bind_thread()
        call = self._gathered(tuple(slots))
        call.run({"tau": np.array(taus, np.float32), "step": np.array(steps, np.float32)}, len(slots))
        self.engine_ns += time.perf_counter_ns() - begin
        return [True] * len(slots)

    def take(self, slot: int) -> tuple[Float32, Float32]:
        """The latents of a slot now: [n_v, c_v], [n_a, c_a]."""
        self._cuda.bind_thread()
        self._scatter()
        self._cuda.copy(self._pinned, self._place(slot), self._layout.places["rope_cos"])
        self._cuda.synchronize()
        x_video, x_audio = (self._host.arrays[name][0].copy() for name in NOISY)
        return x_video, x_audio

    def drop(self, slot: int) -> None:
        """Gives a slot back; what is in it stays until the next unit."""
        self._cuda.bind_thread()
        self._scatter()
        self._free.append(slot)

    def rehearse(self) -> None:
        """Captures the graphs of every size, so that no unit waits for one."""
        self._cuda.bind_thread()
        self._scatter()
        for pages in self._limits.all_pages():
            for rows in self._limits.all_rows():
                self._call_of(rows, pages)

    def close(self) -> None:
        """Frees its memory."""
        for call in self._calls.values():
            call.close()
        for array in (self._units, *self._batch.values()):
            self._cuda.free(array)
        self._cuda.free_pinned(self._pinned)

    def _gathered(self, slots: tuple[int, ...]) -> Call:
        """The call over these slots, whose inputs then hold them."""
        rows, pages = self._limits.rows(len(slots)), self._limits.pages(int(self._pages[list(slots)].max()))
        if (slots, (rows, pages)) != (self._loaded, self._bucket):
            self._scatter()
            self._call_of(rows, pages)
            for row, slot in enumerate(slots):
                for name in UNIT:
                    to, size = self._row(name, row, pages)
                    self._cuda.copy(to, self._place(slot, name), size)
            self._loaded, self._bucket = slots, (rows, pages)
        return self._call_of(rows, pages)

    def _scatter(self) -> None:
        """Gives the latents of the last tick back to their slots."""
        for row, slot in enumerate(self._loaded):
            for name in NOISY:
                source, size = self._row(name, row, self._bucket[1])
                self._cuda.copy(self._place(slot, name), source, size)
        self._loaded = ()

    def _call_of(self, rows: int, pages: int) -> Call:
        """Its first run steps whatever lies in the inputs: nobody's latents may."""
        if (rows, pages) not in self._calls:
            shapes = self._shapes(rows, pages)
            own = shapes | {name: shapes[x] for name, x in OUTPUTS.items()}
            bound = {n: DeviceArray.packed(array.pointer, own[n], array.dtype) for n, array in self._batch.items()}
            after = [(bound[x], bound[f"{x}_out"]) for x in NOISY]
            self._calls[rows, pages] = self._engine.prepare(shapes, {**bound, **self._pools}, after)
        return self._calls[rows, pages]

    def _shapes(self, rows: int, pages: int) -> Shapes:
        return self._engine.resolve({**self._symbols, "batch": rows, "pages": pages})

    def _place(self, slot: int, name: str = UNIT[0]) -> int:
        """Where a tensor of a slot lies."""
        return self._units.pointer + slot * self._layout.bytes + self._layout.places[name]

    def _row(self, name: str, row: int, pages: int) -> tuple[int, int]:
        """Where a row of an input lies in calls of so many pages, and its bytes."""
        slot = self._layout.slots[name]
        size = slot.bytes * pages // self._limits.max_pages if slot.ragged else slot.bytes
        return self._batch[name].pointer + row * size, size
