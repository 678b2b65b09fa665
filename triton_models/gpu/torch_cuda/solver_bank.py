"""Noisy latents between their first and their last solver step, on the device: nothing but row numbers travels a tick.

A unit gets a slot: its noise, RoPE tables and history are uploaded once (`put`). A tick names slots, each with its tau
and the length of its step, in any combination: gather, network, Euler step and scatter are one graph launch. Row 0 of
all buffers is scratch: it stands for rows that only fill a batch bucket, and for all of them while a graph is captured.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from engine_builder.config import ModelConfig
from triton_models.runtime.engines.solver import SolverFull
from triton_models.runtime.messages import Float32, HistoryView

from ..cuda.buckets import Limits, check_pages
from ..cuda.staging import Slot
from ..kernels.history_index import HistoryIndex
from . import passes
from .backbone import Backbone, History
from .captured import CapturedCall, Lane


class SolverBank:
    """A `runtime.engines.solver.Solver`: up to `slots` units in flight over one pool. One thread calls it."""

    def __init__(
        self, backbone: Backbone, limits: Limits, lane: Lane, k_pool: Tensor, v_pool: Tensor, slots: int
    ) -> None:
        c: ModelConfig = backbone.weights.config
        device, half = backbone.weights.device, c.backbone.head_dim // 2
        self._backbone, self._limits, self._lane = backbone, limits, lane
        self._pools, self._page_tokens = (k_pool, v_pool), int(k_pool.shape[2])
        self.slots = slots
        self.engine_ns = 0
        self._free = list(range(slots - 1, -1, -1))

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(slots + 1, *shape, device=device)

        with lane.current():
            self._state = {
                "x_video": zeros(c.video.tokens, c.video.latent_dim),
                "x_audio": zeros(c.audio.tokens, c.audio.latent_dim),
                "rope_cos": zeros(c.latent_tokens, half),
                "rope_sin": zeros(c.latent_tokens, half),
            }
            self._index = HistoryIndex.empty(slots + 1, limits.max_pages, self._page_tokens, device)
        self._pages = np.zeros(slots, dtype=np.int64)  # of a slot's history
        self._ticks: dict[tuple[int, int], CapturedCall] = {}
        self._puts: dict[int, CapturedCall] = {}
        self._take = CapturedCall(
            lambda t: {name: self._state[name].index_select(0, t["row"]) for name in ("x_video", "x_audio")},
            {"row": Slot((1,), "int64")},
            lane,
        )

    def put(self, x_video: Float32, x_audio: Float32, cos: Float32, sin: Float32, view: HistoryView) -> int:
        """Fills a slot: latents [n_v, c_v], [n_a, c_a], RoPE tables [n, D / 2] and a history. Raises SolverFull, or
        EngineError for what does not fit."""
        ids = view.page_ids
        check_pages(view, self._pools[0].shape[1])
        if not self._free:
            raise SolverFull(f"units: all {self.slots} slots of the performer are taken")
        slot = self._free[-1]
        values = {"x_video": x_video, "x_audio": x_audio, "rope_cos": cos, "rope_sin": sin}
        inputs = {name: value[None] for name, value in values.items()}
        inputs |= {"row": np.array([slot + 1]), "page_table": ids[None], "page_range": view.ranges[None]}
        call = self._put_of(self._limits.pages(len(ids)))
        call.launch(inputs, 1)
        call.wait(1)  # the staging buffer is filled again by the next put: this one must have left it
        self._pages[slot] = len(ids)
        return self._free.pop()

    def drop(self, slot: int) -> None:
        """Gives a slot back; what is in it stays until the next unit."""
        self._free.append(slot)

    def rehearse(self) -> None:
        """Captures the graphs of every size, so that no unit waits for one."""
        for pages in self._limits.all_pages():
            self._put_of(pages)
            for rows in self._limits.all_rows():
                self._tick_of(rows, pages)

    def _put_of(self, pages: int) -> CapturedCall:
        if pages not in self._puts:
            slots = {name: Slot((1, *t.shape[1:]), "float32") for name, t in self._state.items()}
            slots["row"] = Slot((1,), "int64")
            slots["page_table"] = Slot((1, pages), "int64", ragged=True)
            slots["page_range"] = Slot((1, pages, 2), "int64", ragged=True)
            self._puts[pages] = CapturedCall(self._store, slots, self._lane)
        return self._puts[pages]

    def _tick_of(self, rows: int, pages: int) -> CapturedCall:
        if (rows, pages) not in self._ticks:
            shapes = {
                "row": Slot((rows,), "int64"),
                "tau": Slot((rows,), "float32"),
                "step": Slot((rows,), "float32"),
            }
            self._ticks[rows, pages] = CapturedCall(lambda t: self._evaluate(t, pages), shapes, self._lane)
        return self._ticks[rows, pages]

    def _store(self, t: Mapping[str, Tensor]) -> dict[str, Tensor]:
        for name, state in self._state.items():
            state.index_copy_(0, t["row"], t[name])
        self._index.fill(t["page_table"], t["page_range"], self._page_tokens, t["row"].int())
        return {}

    def tick(self, slots: Sequence[int], taus: Sequence[float], steps: Sequence[float]) -> np.ndarray:
        """One Euler step x += step * velocity(x, tau) of each named slot; bool [B]: False where it is not finite."""
        batch = len(slots)
        call = self.tick_call(slots)
        inputs = {
            "row": np.array(slots) + 1,
            "tau": np.array(taus, dtype=np.float32),
            "step": np.array(steps, dtype=np.float32),
        }
        begin = time.perf_counter_ns()
        call.launch(inputs, batch)
        finite = call.wait(batch)["finite"].astype(bool)
        self.engine_ns += time.perf_counter_ns() - begin
        return finite

    def tick_call(self, slots: Sequence[int]) -> CapturedCall:
        """The graph that serves a tick of these slots."""
        return self._tick_of(self._limits.rows(len(slots)), self._limits.pages(int(self._pages[list(slots)].max())))

    def _evaluate(self, t: Mapping[str, Tensor], pages: int) -> dict[str, Tensor]:
        index = self._index.narrow(pages, self._page_tokens)
        history = History(*self._pools, index, rows=t["row"].int())
        x = {name: state.index_select(0, t["row"]) for name, state in self._state.items()}
        tau = torch.where(t["row"] > 0, t["tau"], 1.0)
        velocities = passes.perform(
            self._backbone, history, x["x_video"], x["x_audio"], tau, x["rope_cos"], x["rope_sin"]
        )
        step = t["step"].view(-1, 1, 1)
        largest = torch.zeros_like(tau)
        for name, velocity in zip(("x_video", "x_audio"), velocities, strict=True):
            self._state[name].index_copy_(0, t["row"], x[name] + step * velocity)
            largest = largest + velocity.abs().amax(dim=(1, 2))
        return {"finite": torch.isfinite(largest).to(torch.uint8)}

    def take(self, slot: int) -> tuple[Float32, Float32]:
        """The latents of a slot now: [n_v, c_v], [n_a, c_a]."""
        self._take.launch({"row": np.array([slot + 1])}, 1)
        out = self._take.wait(1)
        return out["x_video"][0], out["x_audio"][0]
