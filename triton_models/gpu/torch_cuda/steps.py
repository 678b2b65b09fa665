"""The four steps of the `torch-cuda` target on a GPU (`runtime.engines.engine.Engine`), one graph launch a call.

A graph has fixed shapes, so calls are rounded up to buckets: rows to a power of two, pages to one of a few lengths.
Rows and pages beyond the real ones are zero: a row without history costs time and changes nothing.

Pools are read in place when `k_pool` and `v_pool` live on this device (torch tensors or `DeviceArray`s). Numpy pools
are copied at every call: fit for tests, and the only way without a device pool.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine_builder.model.steps import EncodeStep, PerceiveStep, RenderStep
from triton_models.runtime.engines.engine import EngineError
from triton_models.runtime.kv.pool import Pool
from triton_models.runtime.thinker.choice import Choice

from ..cuda.buckets import Limits, used_pages
from ..cuda.cuda_runtime import DeviceArray
from ..cuda.staging import Slot
from ..kernels.history_index import HistoryIndex
from . import passes
from .backbone import Backbone, History
from .captured import CapturedCall, Lane, dtype_name
from .solver_bank import SolverBank
from .state_bank import StateBank

Inputs = Mapping[str, Any]
Outputs = dict[str, Any]


class Step:
    """A step with a captured call for every set of shapes."""

    def __init__(self, limits: Limits, lane: Lane) -> None:
        self._limits, self._lane = limits, lane
        self._calls: dict[Any, CapturedCall] = {}

    def run(self, inputs: Inputs) -> Outputs:
        """Raises EngineError for inputs that do not fit."""
        call, inputs, batch = self.call_for(inputs)
        call.launch(inputs, batch)
        return call.wait(batch)

    def call_for(self, inputs: Inputs) -> tuple[CapturedCall, Inputs, int]:
        """The captured call that serves these inputs, the inputs as it takes them, and their number of rows."""
        raise NotImplementedError


class StatefulStep(Step):
    """A codec's step: a module over rows, without history. `shapes`: its inputs in order, without the batch.

    `run` takes states of the host and gives them back; who serves units takes a `bank`.
    """

    def __init__(
        self,
        module: PerceiveStep | RenderStep | EncodeStep,
        shapes: Mapping[str, tuple[tuple[int, ...], str]],
        outputs: tuple[str, ...],
        limits: Limits,
        lane: Lane,
    ) -> None:
        super().__init__(limits, lane)
        self._module, self._shapes, self._outputs = module, shapes, outputs
        self.kept: StateBank | None = None

    def bank(self, start: np.ndarray, sessions: int) -> StateBank:
        """Room for the states of so many sessions on the device."""
        media = {name: shape for name, shape in self._shapes.items() if name != "state"}
        assert not isinstance(self._module, EncodeStep), "it runs before its session has any"
        self.kept = StateBank(self._module, media, self._outputs, self._limits, self._lane, sessions, start)
        return self.kept

    def call_for(self, inputs: Inputs) -> tuple[CapturedCall, Inputs, int]:
        batch = next(iter(inputs.values())).shape[0]
        rows = self._limits.rows(batch)
        if rows not in self._calls:
            slots = {name: Slot((rows, *shape), dtype) for name, (shape, dtype) in self._shapes.items()}
            self._calls[rows] = CapturedCall(self._body, slots, self._lane)
        return self._calls[rows], inputs, batch

    def _body(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(self._outputs, self._module(*inputs.values()), strict=True))


class PagedStep(Step):
    """What think and perform share: pools and history buckets."""

    def __init__(self, backbone: Backbone, limits: Limits, lane: Lane) -> None:
        super().__init__(limits, lane)
        self.backbone = backbone
        self._indexes: dict[tuple[int, int, int], HistoryIndex] = {}
        self._copies: dict[str, Tensor] = {}

    def _pools(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        return self._pool("k_pool", inputs["k_pool"]), self._pool("v_pool", inputs["v_pool"])

    def _pool(self, name: str, pool: Any) -> Tensor:
        """The pool as a tensor of this device and precision: itself if it is one, else a copy with a fixed address."""
        w = self.backbone.weights
        if not isinstance(pool, np.ndarray):
            tensor = pool if isinstance(pool, Tensor) else tensor_of(pool, w.device)
            if tensor.device != w.device or tensor.dtype != w.dtype:
                raise EngineError(f"{name}: expected {w.dtype} on {w.device}, got {tensor.dtype} on {tensor.device}")
            self._check_pool(name, tensor.shape)
            return tensor
        self._check_pool(name, pool.shape)
        held = self._copies.get(name)
        if held is None or held.shape != pool.shape:
            held = self._copies[name] = torch.empty(pool.shape, dtype=w.dtype, device=w.device)
            self._calls.clear()  # their graphs hold the address of the old copy
        held.copy_(torch.from_numpy(pool if pool.flags.writeable else pool.copy()))
        return held

    def _check_pool(self, name: str, shape: tuple[int, ...]) -> None:
        b = self.backbone.config
        layers, groups, size = b.layers, self.backbone.groups, b.head_dim
        if len(shape) != 5 or (shape[0], *shape[3:]) != (layers, groups, size):
            raise EngineError(f"{name}: expected [{layers}, pages, page, {groups}, {size}], got {list(shape)}")

    def _index(self, rows: int, pages: int, page_tokens: int) -> HistoryIndex:
        """The token list of a bucket; one for all graphs of it, since they run one after the other."""
        key = (rows, pages, page_tokens)
        if key not in self._indexes:
            self._indexes[key] = HistoryIndex.empty(rows, pages, page_tokens, self.backbone.weights.device)
        return self._indexes[key]

    def _history(self, k_pool: Tensor, v_pool: Tensor, inputs: Mapping[str, Tensor]) -> History:
        table = inputs["page_table"]
        index = self._index(table.shape[0], table.shape[1], k_pool.shape[2])
        index.fill(table, inputs["page_range"], k_pool.shape[2])
        return History(k_pool, v_pool, index)

    def _checked_history(self, inputs: Inputs, pool: Tensor) -> tuple[int, dict[str, np.ndarray]]:
        """Rows of the call, and its history without empty ends.

        A page id outside the pool would read another's memory, so it is refused.
        """
        table, span = inputs["page_table"], inputs["page_range"]
        if table.ndim != 2 or span.shape != (*table.shape, 2):
            raise EngineError(f"page_range: expected {[*table.shape, 2]} like page_table, got {list(span.shape)}")
        if table.size and not (table.min() >= 0 and table.max() < pool.shape[1]):
            raise EngineError(
                f"page_table: expected pages 0 to {pool.shape[1] - 1}, got {table.min()} to {table.max()}"
            )
        pages = used_pages(span)
        return table.shape[0], {"page_table": table[:, :pages], "page_range": span[:, :pages]}

    def _paged_slots(self, rows: int, pages: int) -> dict[str, Slot]:
        return {
            "page_table": Slot((rows, pages), "int64", ragged=True),
            "page_range": Slot((rows, pages, 2), "int64", ragged=True),
        }


class PerformEngine(PagedStep):
    """One evaluation of the velocity field: `velocity_video` [B, n_v, c_v], `velocity_audio` [B, n_a, c_a]."""

    def bank(self, pool: Pool, slots: int) -> SolverBank:
        """Room for `slots` units that are solved on the device over a pool of the device."""
        with self._lane.current():
            pools = self._pool("k_pool", pool.k), self._pool("v_pool", pool.v)
            return SolverBank(self.backbone, self._limits, self._lane, *pools, slots)

    def call_for(self, inputs: Inputs) -> tuple[CapturedCall, Inputs, int]:
        k_pool, v_pool = self._pools(inputs)
        batch, history = self._checked_history(inputs, k_pool)
        rows, pages = self._limits.rows(batch), self._limits.pages(history["page_table"].shape[1])
        key = (rows, pages, *_place(k_pool), *_place(v_pool))
        if key not in self._calls:
            c = self.backbone.weights.config
            half = c.backbone.head_dim // 2
            slots = {
                "x_video": Slot((rows, c.video.tokens, c.video.latent_dim), "float32"),
                "x_audio": Slot((rows, c.audio.tokens, c.audio.latent_dim), "float32"),
                "tau": Slot((rows,), "float32"),
                "rope_cos": Slot((rows, c.latent_tokens, half), "float32"),
                "rope_sin": Slot((rows, c.latent_tokens, half), "float32"),
                **self._paged_slots(rows, pages),
            }

            def body(t: Mapping[str, Tensor]) -> dict[str, Tensor]:
                history = self._history(k_pool, v_pool, t)
                tau = torch.where(t["tau"] > 0, t["tau"], 1.0)  # rows that only fill the bucket
                video, audio = passes.perform(
                    self.backbone, history, t["x_video"], t["x_audio"], tau, t["rope_cos"], t["rope_sin"]
                )
                return {"velocity_video": video, "velocity_audio": audio}

            self._calls[key] = CapturedCall(body, slots, self._lane)
        return self._calls[key], {**inputs, **history}, batch


class ThinkEngine(PagedStep):
    """Context blocks, slots and prompts. Each pass length has graphs of its own.

    With pools that are `DeviceArray`s, `k_new` and `v_new` come back as such, for `DevicePool.write` to take before the
    next call overwrites them, and `finite` bool [B] says of which rows all numbers are; in place of the logits come the
    tokens that `Choice` would make of them. Otherwise all comes back as float32 of the host.
    """

    def __init__(self, backbone: Backbone, limits: Limits, lane: Lane) -> None:
        super().__init__(backbone, limits, lane)
        self._kv: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._last: CapturedCall | None = None  # owns the K and V that were handed out
        language, device = backbone.weights.config.language, backbone.weights.device
        choice = Choice(language)
        with lane.current():
            self._states = torch.tensor(choice.states, device=device)
            self._bias = torch.tensor(choice.bias, device=device)
            self._barred = torch.zeros(language.vocab_size, dtype=torch.bool, device=device)
            self._barred[torch.tensor(choice.barred, device=device)] = True

    def run(self, inputs: Inputs) -> Outputs:
        call, inputs, batch = self.call_for(inputs)
        call.launch(inputs, batch)
        out = call.wait(batch)
        if "finite" in out:
            out["finite"] = out["finite"].astype(bool)
        for name in ("k_new", "v_new"):
            if name in out:  # batch first on the way, layers first in the contract
                out[name] = np.ascontiguousarray(out[name].swapaxes(0, 1))
        self._last = call
        return out | {name: device_array(tensor) for name, tensor in call.kept.items()}

    def call_for(self, inputs: Inputs) -> tuple[CapturedCall, Inputs, int]:
        k_pool, v_pool = self._pools(inputs)
        batch, history = self._checked_history(inputs, k_pool)
        rows, pages = self._limits.rows(batch), self._limits.pages(history["page_table"].shape[1])
        resident = isinstance(inputs["k_pool"], DeviceArray)
        parts = tuple(inputs[name].shape[1] for name in ("z_video", "z_audio", "e_video", "e_audio", "ids"))
        key = (rows, pages, *_place(k_pool), *_place(v_pool), parts, resident)
        call = self._calls.get(key)
        if call is None:
            # Prompts come in any length and once a session: not worth a graph each.
            fixed = parts[4] == 1 or all(parts)
            slots = self._slots(rows, pages, parts)
            kept: dict[str, Tensor] = {}
            if resident:
                kept["k_new"], kept["v_new"] = self._new_kv(rows, sum(parts), fixed)
            call = CapturedCall(lambda t: self._body(k_pool, v_pool, t, kept), slots, self._lane, fixed, kept)
            if fixed:
                self._calls[key] = call
        return call, {**inputs, **history}, batch

    def _new_kv(self, rows: int, tokens: int, fixed: bool) -> tuple[Tensor, Tensor]:
        """Memory for K and V that stay on the device: one pair for all graphs of a size, as passes take turns."""
        with self._lane.current():
            if not fixed:
                return self.backbone.new_kv(rows, tokens)
            if (rows, tokens) not in self._kv:
                self._kv[rows, tokens] = self.backbone.new_kv(rows, tokens)
            return self._kv[rows, tokens]

    def _slots(self, rows: int, pages: int, parts: tuple[int, ...]) -> dict[str, Slot]:
        c = self.backbone.weights.config
        d, half, tokens = c.backbone.hidden_size, c.backbone.head_dim // 2, sum(parts)
        widths = (c.video.latent_dim, c.audio.latent_dim, d, d)
        slots = {
            name: Slot((rows, count, width), "float32")
            for name, count, width in zip(("z_video", "z_audio", "e_video", "e_audio"), parts[:4], widths, strict=True)
        }
        return slots | {
            "ids": Slot((rows, parts[4]), "int64"),
            "rope_cos": Slot((rows, tokens, half), "float32"),
            "rope_sin": Slot((rows, tokens, half), "float32"),
            "block_mask": Slot((rows, tokens, tokens), "bool"),
            **self._paged_slots(rows, pages),
        }

    def _body(
        self, k_pool: Tensor, v_pool: Tensor, t: Mapping[str, Tensor], kept: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        history = self._history(k_pool, v_pool, t)
        mask = None if t["rope_cos"].shape[1] == 1 else t["block_mask"]  # a single token sees itself
        names = ("z_video", "z_audio", "e_video", "e_audio", "ids", "rope_cos", "rope_sin")
        kv = (kept["k_new"], kept["v_new"]) if kept else None
        thought = passes.think(self.backbone, history, *[t[name] for name in names], block_mask=mask, kv=kv)
        if kept:
            return {**self.choices(thought.logits), "finite": thought.finite}
        return {
            "logits": thought.logits,
            "k_new": thought.k.transpose(0, 1).float(),
            "v_new": thought.v.transpose(0, 1).float(),
        }

    def choices(self, logits: Tensor) -> dict[str, Tensor]:
        """logits [B, V] -> int64 [B]: the likeliest state after its bias, and the likeliest of text and <eou>; of
        equals the first."""
        state = (logits.index_select(1, self._states) + self._bias).argmax(1)
        text = logits.masked_fill(self._barred, -torch.inf).argmax(1)
        return {"state_token": self._states.index_select(0, state), "text_token": text}


def _place(pool: Tensor) -> tuple[int, torch.Size]:
    """What a graph over a pool depends on: a later pool of another size may lie at the same address."""
    return pool.data_ptr(), pool.shape


def device_array(tensor: Tensor) -> DeviceArray:
    """The memory of a tensor, which must outlive it."""
    return DeviceArray(tensor.data_ptr(), tuple(tensor.shape), dtype_name(tensor.dtype), tuple(tensor.stride()))


def tensor_of(array: DeviceArray, device: torch.device) -> Tensor:
    """The memory of an array as a tensor without a copy. On a CPU its pointer is taken to be host memory (tests)."""
    kind = getattr(torch, array.dtype)
    if device.type == "cuda":
        return torch.as_tensor(array, device=device).view(kind)
    count = math.prod(array.shape)
    memory = (ctypes.c_ubyte * (count * array.item_bytes)).from_address(array.pointer)
    return torch.frombuffer(memory, dtype=kind).view(array.shape)
