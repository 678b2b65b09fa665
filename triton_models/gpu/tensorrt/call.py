"""A plan over fixed shapes, captured once as a CUDA graph: upload, plan and download are one launch from then on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from triton_models.runtime.engines.engine import EngineError

from ..cuda.cuda_runtime import CudaRuntime, DeviceArray
from ..cuda.staging import Arrays, HostBlock, Layout, Slot

Copies = Sequence[tuple[DeviceArray, DeviceArray]]  # (to, from)


class Call:
    """Buffers and graph of one set of shapes. Addresses never change, so the graph stays valid."""

    def __init__(
        self,
        step: str,
        context: Any,
        cuda: CudaRuntime,
        inputs: Mapping[str, Slot],
        outputs: Mapping[str, Slot],
        bound: Mapping[str, DeviceArray],
        kept: Mapping[str, DeviceArray],
        after: Copies = (),
    ) -> None:
        """inputs, outputs: what travels at every call
        bound, kept: memory that the plan reads and writes where it is; `kept` are outputs of the engine's own
        after: what is copied on the device when the plan has run
        """
        self._step, self._context, self._cuda, self._after = step, context, cuda, after
        self._in, self._out = _Half(cuda, Layout(inputs)), _Half(cuda, Layout(outputs))
        self.kept = dict(kept)
        addresses = {name: array.pointer for name, array in (*bound.items(), *kept.items())}
        addresses |= self._in.addresses | self._out.addresses
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise EngineError(f"{step}: {name}: its address was refused")
        self._enqueue()  # what a context does at its first run must not be recorded
        cuda.synchronize()
        cuda.begin_capture()
        self._enqueue()
        self._graph = cuda.end_capture()

    def _enqueue(self) -> None:
        self._cuda.copy(self._in.device.pointer, self._in.pinned, self._in.layout.bytes)
        if not self._context.execute_async_v3(self._cuda.stream):
            raise EngineError(f"{self._step}: the plan could not be started; see the messages above")
        for to, source in self._after:
            self._cuda.copy(to.pointer, source.pointer, math.prod(to.shape) * to.item_bytes)
        if self._out.layout.slots:
            self._cuda.copy(self._out.pinned, self._out.device.pointer, self._out.layout.bytes)

    def run(self, inputs: Mapping[str, Any], rows: int) -> Arrays:
        """The outputs that travel, when all is done. ValueError names what does not fit."""
        self._in.host.fill(inputs, rows)
        self._cuda.launch(self._graph)
        self._cuda.synchronize()
        return self._out.host.copies(rows)

    def close(self) -> None:
        self._cuda.free_graph(self._graph)
        for half in (self._in, self._out):
            half.close(self._cuda)


class _Half:
    """The inputs or the outputs of a call: pinned host memory and device memory of one layout."""

    def __init__(self, cuda: CudaRuntime, layout: Layout) -> None:
        self.layout = layout
        self.device = cuda.allocate((layout.bytes,), "uint8")
        self.pinned, memory = cuda.pinned(layout.bytes)
        memory[:] = bytes(layout.bytes)
        self.host = HostBlock(layout, memory)

    @property
    def addresses(self) -> dict[str, int]:
        return {name: self.device.pointer + place for name, place in self.layout.places.items()}

    def close(self, cuda: CudaRuntime) -> None:
        cuda.free(self.device)
        cuda.free_pinned(self.pinned)
