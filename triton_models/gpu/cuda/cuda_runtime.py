"""The CUDA runtime as the KV link and the TensorRT executor use it: cuda-python with errors as exceptions. No torch."""

from __future__ import annotations

import ctypes
import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

IPC_HANDLE_BYTES = 64  # CUDA_IPC_HANDLE_SIZE
# cudaMalloc cuts small allocations from blocks of this size and IPC shares whole blocks, neighbours and all (CUDA C
# programming guide, interprocess communication): what is shared fills its blocks.
IPC_BLOCK_BYTES = 2 << 20
MAX_PITCH = 2**31 - 1  # cudaDeviceProp.memPitch; layers of a large pool lie further apart
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "int64": 8, "int32": 4, "uint8": 1, "bool": 1}
# Array interfaces know no bfloat16: its bits travel as integers and the receiver names the type.
_TYPE_STRINGS = {
    "float32": "<f4",
    "bfloat16": "<i2",
    "int64": "<i8",
    "int32": "<i4",
    "uint8": "|u1",
    "bool": "|b1",
}


class CudaError(RuntimeError):
    """A CUDA call that failed: which one, and what CUDA says about it."""

    def __init__(self, call: str, code: object, message: str) -> None:
        super().__init__(f"{call}: {message} ({code})")
        self.code = code


@dataclass(frozen=True)
class DeviceArray:
    """Memory of a GPU with a shape: `strides` are in elements. It owns nothing; whoever allocated it frees it."""

    pointer: int
    shape: tuple[int, ...]
    dtype: str
    strides: tuple[int, ...]

    @classmethod
    def packed(cls, pointer: int, shape: Sequence[int], dtype: str) -> DeviceArray:
        """An array without gaps."""
        strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        return cls(pointer, tuple(shape), dtype, strides)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def item_bytes(self) -> int:
        return ITEM_BYTES[self.dtype]

    def row(self, axis: int, i: int) -> DeviceArray:
        """The array at index `i` of `axis`, which falls away. `IndexError` outside of it."""
        if not 0 <= i < self.shape[axis]:
            raise IndexError(f"axis {axis}: expected 0 to {self.shape[axis] - 1}, got {i}")
        rest = [j for j in range(self.ndim) if j != axis]
        return DeviceArray(
            self.pointer + i * self.strides[axis] * self.item_bytes,
            tuple(self.shape[j] for j in rest),
            self.dtype,
            tuple(self.strides[j] for j in rest),
        )

    def __getitem__(self, key: tuple[slice, int]) -> DeviceArray:
        """`array[:, i]`, and nothing else: a batch row of K and V [L, B, ...]."""
        if not (isinstance(key, tuple) and len(key) == 2 and key[0] == slice(None)):
            raise IndexError(f"index: expected [:, i], got {key}")
        return self.row(1, key[1])

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": _TYPE_STRINGS[self.dtype],
            "data": (self.pointer, False),
            "strides": tuple(s * self.item_bytes for s in self.strides),
            "version": 3,
        }


class CudaRuntime:
    """cuda-python's runtime API, one device, one stream. Sizes are bytes, pointers are integers."""

    def __init__(self, device: int = 0, api: Any = None, priority: int = 0) -> None:
        """Raises CudaError without a usable GPU, or ImportError text that says what to install."""
        if api is None:
            try:
                api = importlib.import_module("cuda.bindings.runtime")
            except ImportError as error:
                raise CudaError(
                    "import", error, "expected cuda-python; pip install 'wan-streamer-triton[gpu]'"
                ) from None
        self.api, self.device = api, device
        self.bind_thread()
        self.stream = int(self("cudaStreamCreateWithPriority", api.cudaStreamNonBlocking, priority))

    def __call__(self, name: str, *arguments: Any) -> Any:
        """Calls `name`; returns its result without the status (None, one value or a tuple). Raises CudaError."""
        status, *results = getattr(self.api, name)(*arguments)
        if int(status) != 0:
            _, text = self.api.cudaGetErrorString(status)
            raise CudaError(name, status, text.decode() if isinstance(text, bytes) else str(text))
        return results[0] if len(results) == 1 else tuple(results) or None

    def bind_thread(self) -> None:
        """Makes the device current in the calling thread; every thread that makes CUDA calls needs it once."""
        self("cudaSetDevice", self.device)

    # -- memory ------------------------------------------------------------------------------------------------
    def allocate(self, shape: Sequence[int], dtype: str) -> DeviceArray:
        """A zeroed array."""
        return self._allocate(max(1, math.prod(shape) * ITEM_BYTES[dtype]), shape, dtype)

    def shareable(self, shape: Sequence[int], dtype: str) -> DeviceArray:
        """A zeroed array that may be exported: its memory blocks hold nothing else."""
        size = max(1, math.prod(shape) * ITEM_BYTES[dtype])
        return self._allocate(-(-size // IPC_BLOCK_BYTES) * IPC_BLOCK_BYTES, shape, dtype)

    def _allocate(self, size: int, shape: Sequence[int], dtype: str) -> DeviceArray:
        pointer = int(self("cudaMalloc", size))
        # Not the plain cudaMemset: that one runs on another stream, and may run after the first use on this one.
        self("cudaMemsetAsync", pointer, 0, size, self.stream)
        self.synchronize()
        return DeviceArray.packed(pointer, shape, dtype)

    def free(self, array: DeviceArray) -> None:
        self("cudaFree", array.pointer)

    def pinned(self, size: int) -> tuple[int, memoryview]:
        """Page-locked host memory: its address, to be given to `free_pinned`, and a view of its bytes."""
        pointer = int(self("cudaHostAlloc", max(1, size), 0))
        return pointer, memoryview((ctypes.c_ubyte * max(1, size)).from_address(pointer)).cast("B")

    def free_pinned(self, pointer: int) -> None:
        self("cudaFreeHost", pointer)

    def copy(self, target: int, source: int, size: int) -> None:
        """Starts copying `size` bytes; either side may be pinned host memory or any device's."""
        self("cudaMemcpyAsync", target, source, size, self.api.cudaMemcpyKind.cudaMemcpyDefault, self.stream)

    def copy_rows(self, target: int, target_pitch: int, source: int, pitch: int, width: int, rows: int) -> None:
        """Starts copying `rows` pieces of `width` bytes that lie `pitch` bytes apart; between devices if need be."""
        if max(target_pitch, pitch) > MAX_PITCH:
            for row in range(rows):
                self.copy(target + row * target_pitch, source + row * pitch, width)
            return
        kind = self.api.cudaMemcpyKind.cudaMemcpyDefault
        self("cudaMemcpy2DAsync", target, target_pitch, source, pitch, width, rows, kind, self.stream)

    def zero_rows(self, target: int, pitch: int, width: int, rows: int) -> None:
        """Starts zeroing `rows` pieces of `width` bytes that lie `pitch` bytes apart."""
        if pitch > MAX_PITCH:
            for row in range(rows):
                self("cudaMemsetAsync", target + row * pitch, 0, width, self.stream)
            return
        self("cudaMemset2DAsync", target, pitch, 0, width, rows, self.stream)

    def synchronize(self) -> None:
        """Waits for everything started on this stream."""
        self("cudaStreamSynchronize", self.stream)

    # -- sharing between processes -----------------------------------------------------------------------------
    def bus(self) -> str:
        """The PCI address of the device."""
        name = self("cudaDeviceGetPCIBusId", 64, self.device)
        return name.decode().rstrip("\0") if isinstance(name, bytes) else str(name)

    def export(self, array: DeviceArray) -> bytes:
        """A handle by which another process on this machine maps an allocation of `shareable`."""
        handle = self("cudaIpcGetMemHandle", array.pointer)
        return ctypes.string_at(handle.getPtr(), IPC_HANDLE_BYTES)

    def import_(self, handle: bytes, shape: Sequence[int], dtype: str) -> DeviceArray:
        """Maps another process's allocation, of this device or of a peer. `close_import` unmaps it."""
        if len(handle) != IPC_HANDLE_BYTES:
            raise CudaError("import_", "handle", f"expected {IPC_HANDLE_BYTES} bytes, got {len(handle)}")
        carrier = self.api.cudaIpcMemHandle_t()
        ctypes.memmove(carrier.getPtr(), handle, IPC_HANDLE_BYTES)
        pointer = int(self("cudaIpcOpenMemHandle", carrier, self.api.cudaIpcMemLazyEnablePeerAccess))
        return DeviceArray.packed(pointer, shape, dtype)

    def close_import(self, array: DeviceArray) -> None:
        self("cudaIpcCloseMemHandle", array.pointer)

    # -- graphs ------------------------------------------------------------------------------------------------
    def begin_capture(self) -> None:
        """From here on work on the stream is recorded and not run."""
        self("cudaStreamBeginCapture", self.stream, self.api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)

    def end_capture(self) -> int:
        """Ends the recording; returns an executable graph, to be given to `launch` and `free_graph`."""
        graph = self("cudaStreamEndCapture", self.stream)
        try:
            return int(self("cudaGraphInstantiate", graph, 0))
        finally:
            self("cudaGraphDestroy", graph)

    def launch(self, graph: int) -> None:
        self("cudaGraphLaunch", graph, self.stream)

    def free_graph(self, graph: int) -> None:
        self("cudaGraphExecDestroy", graph)

    def close(self) -> None:
        self("cudaStreamDestroy", self.stream)
