"""A stand-in for `cuda.bindings.runtime` whose device memory is host memory: the same names, arguments and results.

It knows what it handed out: a copy beyond an allocation, a double free or an unknown handle is an error.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum
from types import SimpleNamespace
from typing import Any


class Status(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2


OK, BAD, FULL = Status


class Handle:
    """cudaIpcMemHandle_t: 64 bytes behind an address."""

    def __init__(self) -> None:
        self.bytes = ctypes.create_string_buffer(64)

    def getPtr(self) -> int:
        return ctypes.addressof(self.bytes)


class FakeCuda:
    cudaStreamNonBlocking = 1
    cudaIpcMemLazyEnablePeerAccess = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyDefault=4)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaIpcMemHandle_t = Handle

    def __init__(self, memory: int = 1 << 28) -> None:
        self.blocks: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.imports: list[int] = []
        self.memory = memory
        self.calls: list[str] = []
        self.recording: list[Any] | None = None
        self.graphs: dict[int, list[Any]] = {}

    def do(self, action) -> None:
        """Runs stream work, or records it if the stream is being captured."""
        if self.recording is None:
            action()
        else:
            self.recording.append(action)

    def used(self) -> int:
        return sum(len(block) for block in self.blocks.values())

    def _inside(self, pointer: int, size: int) -> bool:
        """True if the bytes lie in device memory, or in memory of the host, of which nothing is known here."""
        for start, block in (self.blocks | self.pinned).items():
            if start <= pointer < start + len(block):
                return pointer + size <= start + len(block)
        return True

    # -- memory
    def cudaSetDevice(self, device):
        return (OK,)

    def cudaGetErrorString(self, status):
        return OK, status.name.encode()

    def cudaDeviceGetPCIBusId(self, length, device):
        return OK, b"0000:01:00.0"

    def cudaMalloc(self, size):
        if self.recording is not None:
            return BAD, None
        if self.used() + size > self.memory:
            return FULL, None
        block = (ctypes.c_ubyte * size)(*([0xAB] * min(size, 64)))
        self.blocks[ctypes.addressof(block)] = block
        return OK, ctypes.addressof(block)

    def cudaFree(self, pointer):
        return (OK if self.blocks.pop(pointer, None) is not None else BAD,)

    def cudaHostAlloc(self, size, flags):
        block = (ctypes.c_ubyte * size)()
        self.pinned[ctypes.addressof(block)] = block
        return OK, ctypes.addressof(block)

    def cudaFreeHost(self, pointer):
        return (OK if self.pinned.pop(pointer, None) is not None else BAD,)

    def cudaMemset(self, pointer, value, size):
        if not self._inside(pointer, size):
            return (BAD,)
        ctypes.memset(pointer, value, size)
        return (OK,)

    def cudaMemsetAsync(self, pointer, value, size, stream):
        return self.cudaMemset(pointer, value, size)

    def cudaMemset2DAsync(self, pointer, pitch, value, width, height, stream):
        for row in range(height):
            if self.cudaMemset(pointer + row * pitch, value, width) != (OK,):
                return (BAD,)
        return (OK,)

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        if not (self._inside(target, size) and self._inside(source, size)):
            return (BAD,)
        self.do(lambda: ctypes.memmove(target, source, size))
        return (OK,)

    def cudaMemcpy2DAsync(self, target, target_pitch, source, pitch, width, height, kind, stream):
        self.calls.append("cudaMemcpy2DAsync")
        if width > pitch or width > target_pitch:
            return (BAD,)
        for row in range(height):
            if self.cudaMemcpyAsync(target + row * target_pitch, source + row * pitch, width, kind, stream) != (OK,):
                return (BAD,)
        return (OK,)

    # -- streams
    def cudaStreamCreateWithPriority(self, flags, priority):
        return OK, 7

    def cudaStreamSynchronize(self, stream):
        if self.recording is not None:
            return (BAD,)
        self.calls.append("cudaStreamSynchronize")
        return (OK,)

    def cudaStreamDestroy(self, stream):
        return (OK,)

    # -- graphs: recorded work runs when the graph is launched
    def cudaStreamBeginCapture(self, stream, mode):
        if self.recording is not None:
            return (BAD,)
        self.recording = []
        return (OK,)

    def cudaStreamEndCapture(self, stream):
        if self.recording is None:
            return BAD, None
        number = 1000 + len(self.calls)
        self.graphs[number], self.recording = self.recording, None
        return OK, number

    def cudaGraphInstantiate(self, graph, flags):
        self.graphs[-graph] = self.graphs[graph]
        self.calls.append("cudaGraphInstantiate")
        return OK, -graph

    def cudaGraphDestroy(self, graph):
        return (OK if self.graphs.pop(graph, None) is not None else BAD,)

    def cudaGraphExecDestroy(self, graph):
        return (OK if self.graphs.pop(graph, None) is not None else BAD,)

    def cudaGraphLaunch(self, graph, stream):
        if graph not in self.graphs:
            return (BAD,)
        self.calls.append("cudaGraphLaunch")
        for action in self.graphs[graph]:
            action()
        return (OK,)

    # -- sharing
    def cudaIpcGetMemHandle(self, pointer):
        if pointer not in self.blocks:
            return BAD, None
        handle = Handle()
        handle.bytes[:8] = pointer.to_bytes(8, "little")
        return OK, handle

    def cudaIpcOpenMemHandle(self, handle, flags):
        pointer = int.from_bytes(handle.bytes[:8], "little")
        if pointer not in self.blocks:
            return BAD, None
        self.imports.append(pointer)
        return OK, pointer

    def cudaIpcCloseMemHandle(self, pointer):
        if pointer not in self.imports:
            return (BAD,)
        self.imports.remove(pointer)
        return (OK,)
