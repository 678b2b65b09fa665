"""Host memory in the part of GPU memory: what `CudaRuntime` does for a pool, on a machine without a GPU.

So the torch-cuda engines run in Triton's interpreter behind the same pools, links and processes that serve on a GPU.
Memory is anonymous, and shared as CUDA IPC shares it: by a handle that is valid while its owner lives.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import os
from collections.abc import Sequence

from .cuda_runtime import IPC_HANDLE_BYTES, ITEM_BYTES, CudaError, DeviceArray


class HostRuntime:
    """The methods of `CudaRuntime` that `DevicePool` calls. Everything is done when a call returns."""

    device = 0

    def __init__(self) -> None:
        self._maps: dict[int, tuple[mmap.mmap, int]] = {}  # address -> mapping, descriptor

    def bind_thread(self) -> None:
        """Every thread sees host memory."""

    def bus(self) -> str:
        return "host"

    def allocate(self, shape: Sequence[int], dtype: str) -> DeviceArray:
        """A zeroed array. OSError if there is no memory."""
        size = max(1, math.prod(shape) * ITEM_BYTES[dtype])
        descriptor = os.memfd_create("wst-pool", os.MFD_CLOEXEC)
        try:
            os.posix_fallocate(descriptor, 0, size)
            return DeviceArray.packed(self._map(descriptor, size), shape, dtype)
        except BaseException:
            os.close(descriptor)
            raise

    def shareable(self, shape: Sequence[int], dtype: str) -> DeviceArray:
        return self.allocate(shape, dtype)

    def free(self, array: DeviceArray) -> None:
        """Other processes keep what they have mapped."""
        mapping, descriptor = self._maps.pop(array.pointer)
        with contextlib.suppress(BufferError):  # an engine still holds a view: the last view unmaps it
            mapping.close()
        os.close(descriptor)

    def copy_rows(self, target: int, target_pitch: int, source: int, pitch: int, width: int, rows: int) -> None:
        for row in range(rows):
            ctypes.memmove(target + row * target_pitch, source + row * pitch, width)

    def zero_rows(self, target: int, pitch: int, width: int, rows: int) -> None:
        for row in range(rows):
            ctypes.memset(target + row * pitch, 0, width)

    def synchronize(self) -> None:
        """Nothing is ever under way."""

    def export(self, array: DeviceArray) -> bytes:
        """A handle by which another process of this user maps the array."""
        _, descriptor = self._maps[array.pointer]
        return f"{os.getpid()}/{descriptor}".encode().ljust(IPC_HANDLE_BYTES, b"\0")

    def import_(self, handle: bytes, shape: Sequence[int], dtype: str) -> DeviceArray:
        """Maps another process's array. CudaError if its owner is gone."""
        owner, _, number = handle.rstrip(b"\0").decode().partition("/")
        try:
            descriptor = os.open(f"/proc/{int(owner)}/fd/{int(number)}", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise CudaError("import_", "handle", f"expected a live owner of the pool, got {error}") from None
        size = max(1, math.prod(shape) * ITEM_BYTES[dtype])
        return DeviceArray.packed(self._map(descriptor, size), shape, dtype)

    def close_import(self, array: DeviceArray) -> None:
        self.free(array)

    def _map(self, descriptor: int, size: int) -> int:
        mapping = mmap.mmap(descriptor, size)
        address = ctypes.addressof(ctypes.c_ubyte.from_buffer(mapping))
        self._maps[address] = (mapping, descriptor)
        return address
