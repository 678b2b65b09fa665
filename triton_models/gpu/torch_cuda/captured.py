"""A function of fixed buffers, captured once as a CUDA graph and launched as one unit from then on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from triton_models.runtime.engines.engine import EngineError

from ..cuda.staging import Arrays, HostBlock, Layout, Slot

Function = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
# Triton's interpreter keeps its state in modules: without a GPU, the threads of thinker and performer take turns.
_INTERPRETER = threading.Lock()
# A capture waits for the whole device when it begins, which another thread's capture would not survive.
_CAPTURE = threading.Lock()
WARM_UP_RUNS = 2  # Triton compiles and cuBLAS chooses before the capture, which forbids both


@dataclass(frozen=True)
class Lane:
    """Where captured calls run: a device, a stream of their own and the memory that their graphs share.

    Graphs of one lane run one after the other, so they may use the same memory for what lies between their kernels.
    `warm_up`: how often a function runs on inputs of zeros before its first call, which must therefore harm nothing.
    """

    device: torch.device
    stream: torch.cuda.Stream | None = None
    pool: Any = None  # torch's handle of a graph memory pool
    warm_up: int = 0

    @classmethod
    def on(cls, device: torch.device, priority: int = 0) -> Lane:
        """A new lane; on a CPU calls just run. `priority` -1 is served before 0 when both wait."""
        if device.type != "cuda":
            return cls(device)
        stream = torch.cuda.Stream(device, priority=priority)
        return cls(device, stream, torch.cuda.graph_pool_handle(), WARM_UP_RUNS)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Work that is started here goes to the lane's stream, so that calls find it done; no gradients.

        What is allocated for a lane must be allocated here: the zeros of another stream may arrive after the data.
        """
        with torch.no_grad(), torch.cuda.stream(self.stream):  # no stream: the current one, or none on a CPU
            yield


class Block:
    """Tensors of fixed shape, twice: pinned host memory and `device` memory. On a CPU both are the same."""

    def __init__(self, slots: Mapping[str, Slot], device: torch.device) -> None:
        layout = Layout(slots)
        self._host = torch.zeros(layout.bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._device = torch.zeros_like(self._host, device=device) if device.type == "cuda" else self._host
        self.host = HostBlock(layout, self._host.numpy())
        self.device = {
            name: self._device[place : place + slots[name].bytes]
            .view(getattr(torch, slots[name].dtype))
            .view(slots[name].shape)
            for name, place in layout.places.items()
        }

    def upload(self) -> None:
        """Host to device; a no-op on a CPU."""
        if self._device is not self._host:
            self._device.copy_(self._host, non_blocking=True)

    def download(self) -> None:
        """Device to host; a no-op on a CPU."""
        if self._device is not self._host:
            self._host.copy_(self._device, non_blocking=True)


class CapturedCall:
    """Copies inputs to the device, runs `function`, copies its outputs back: one graph launch. One thread calls it.

    Without `capture`, and on a CPU, the same happens operation by operation. `kept`: tensors that the function writes
    and that stay on the device.
    """

    def __init__(
        self,
        function: Function,
        inputs: Mapping[str, Slot],
        lane: Lane,
        capture: bool = True,
        kept: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._function, self._lane = function, lane
        self.kept = dict(kept or {})
        self._out: Block | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        with lane.current():
            self._in = Block(inputs, lane.device)
            if capture:
                for _ in range(lane.warm_up):
                    self._body()
                if lane.stream is not None:
                    self._capture(lane.stream)

    def _capture(self, stream: torch.cuda.Stream) -> None:
        with _CAPTURE:
            stream.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, pool=self._lane.pool, stream=stream, capture_error_mode="thread_local"):
                self._body()
            stream.synchronize()

    def _body(self) -> None:
        self._in.upload()
        outputs = self._function(self._in.device)
        if self._out is None:
            slots = {name: Slot(tuple(t.shape), dtype_name(t.dtype)) for name, t in outputs.items()}
            self._out = Block(slots, self._lane.device)
        for name, tensor in outputs.items():
            self._out.device[name].copy_(tensor)
        self._out.download()

    def launch(self, inputs: Mapping[str, np.ndarray], rows: int) -> None:
        """Starts the call; `wait` gives its results. EngineError if an input does not fit."""
        try:
            self._in.host.fill(inputs, rows)
        except ValueError as error:
            raise EngineError(str(error)) from None
        self.relaunch()

    def relaunch(self) -> None:
        """Starts the call on the inputs of the last `launch` (of zeros before the first), as benchmarks do."""
        with self._lane.current():
            if self._graph is not None:
                self._graph.replay()
            elif self._lane.stream is not None:
                self._body()
            else:
                with _INTERPRETER:
                    self._body()

    def wait(self, rows: int) -> Arrays:
        """Outputs of the last launch, their first `rows` rows (axis 0), as arrays of their own."""
        if self._lane.stream is not None:
            self._lane.stream.synchronize()
        if self._out is None:
            raise RuntimeError("wait: expected a launch before it")
        return self._out.host.copies(rows)


def dtype_name(dtype: torch.dtype) -> str:
    """torch.float32 -> "float32"."""
    return str(dtype).removeprefix("torch.")
