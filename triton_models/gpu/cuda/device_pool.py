"""The KV pool in GPU memory, and the KV link between two devices.

On one device both roles use one `DevicePool` of their stage. With two (`MirroredPool`) the performer's stage keeps a
pool of its own under the same page ids; the thinker maps it through CUDA IPC and copies what it writes from its pool to
that one, device to device. Every rank of a performer group has one, for its share of the heads. The interface is that
of `runtime.kv.pool.Pool`.

How to map a pool is written to a small file in /dev/shm: magic, geometry as JSON, the two IPC handles. Every method
that changes the pool returns when the change is done, so that the message that follows it may name the pages.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine_builder.config import ModelConfig
from triton_models.runtime.engines.devices import CPU
from triton_models.runtime.kv.pool import NULL_PAGE, PageRun, PoolError, PoolGeometry, check_spans

from .cuda_runtime import IPC_HANDLE_BYTES, ITEM_BYTES, CudaError, CudaRuntime, DeviceArray
from .host_runtime import HostRuntime

Memory = CudaRuntime | HostRuntime

SHM_DIRECTORY = Path("/dev/shm")

_MAGIC = b"WSTGPU01"
_PREFIX = struct.Struct("<8s32sI")  # magic, SHA-256 of the rest, its length
_MAX_CARD_BYTES = 1 << 16
_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")


@dataclass(frozen=True)
class PoolCard:
    """What a process must know to map a pool: geometry, precision, the GPU's PCI address, and a handle for k and v."""

    geometry: PoolGeometry
    dtype: str
    bus: str
    handles: tuple[bytes, bytes]

    def pack(self) -> bytes:
        data = asdict(self) | {"handles": [handle.hex() for handle in self.handles]}
        text = json.dumps(data, sort_keys=True).encode()
        return _PREFIX.pack(_MAGIC, hashlib.sha256(text).digest(), len(text)) + text

    @classmethod
    def unpack(cls, name: str, data: bytes) -> PoolCard:
        if len(data) < _PREFIX.size or not data.startswith(_MAGIC):
            raise PoolError(f"pool {name}: expected a GPU pool ({_MAGIC!r}), got a file that begins {data[:8]!r}")
        _, digest, length = _PREFIX.unpack_from(data)
        text = data[_PREFIX.size : _PREFIX.size + length]
        if hashlib.sha256(text).digest() != digest:
            raise PoolError(f"pool {name}: expected the text that its header was sealed with, got a damaged one")
        fields = json.loads(text)
        first, second = (bytes.fromhex(handle) for handle in fields["handles"])
        if len(first) != IPC_HANDLE_BYTES or len(second) != IPC_HANDLE_BYTES:
            raise PoolError(f"pool {name}: expected handles of {IPC_HANDLE_BYTES} bytes, got {len(first)}")
        return cls(PoolGeometry(**fields["geometry"]), fields["dtype"], fields["bus"], (first, second))


class DevicePool:
    """`k` and `v`: arrays [L, n_pages, page, Hkv, D] in GPU memory. Made by `create` (owner) or `open`."""

    def __init__(
        self, name: str, geometry: PoolGeometry, cuda: Memory, k: DeviceArray, v: DeviceArray, owner: bool
    ) -> None:
        self.name, self.geometry, self.owner = name, geometry, owner
        self.k, self.v = k, v
        self.cuda = cuda
        self._open = True

    @classmethod
    def create(
        cls,
        config: ModelConfig,
        num_pages: int,
        page_tokens: int,
        dtype: str,
        cuda: Memory,
        name: str = "",
        ranks: int = 1,
    ) -> DevicePool:
        """Allocates a zeroed pool, that of one of `ranks` in a group; with a name another process may map it.

        `PoolError` if the name is taken or memory is short.
        """
        geometry = PoolGeometry.of(config, num_pages, page_tokens, ranks)
        arrays: list[DeviceArray] = []
        try:
            take = cuda.shareable if name else cuda.allocate
            arrays.append(k := take(geometry.shape, dtype))
            arrays.append(v := take(geometry.shape, dtype))
            if name:
                _publish(name, PoolCard(geometry, dtype, cuda.bus(), (cuda.export(k), cuda.export(v))))
        except BaseException as error:
            for array in arrays:
                cuda.free(array)
            if not isinstance(error, CudaError | OSError):
                raise
            size = pool_bytes(geometry, dtype) / 2**30
            raise PoolError(
                f"pool: expected {size:.2f} GiB of device memory for {num_pages} pages of {page_tokens} tokens, "
                f"got: {error}; serve with fewer pages (--pages; engines of TensorRT: --pool-pages of the build)"
            ) from None
        return cls(name, geometry, cuda, k, v, owner=True)

    @classmethod
    def open(cls, name: str, config: ModelConfig, cuda: Memory, ranks: int = 1) -> DevicePool:
        """Maps a pool that another process made; `PoolError` unless it exists and was made for `config`; `CudaError`.

        A process cannot map what it made itself.
        """
        path = _path(name)
        try:
            with path.open("rb") as file:
                card = PoolCard.unpack(name, file.read(_MAX_CARD_BYTES))
        except FileNotFoundError:
            raise PoolError(f"pool {name}: expected {path} made by the thinker, got no such file") from None
        wanted = PoolGeometry.of(config, card.geometry.num_pages, card.geometry.page_tokens, ranks)
        if card.geometry != wanted:
            raise PoolError(f"pool {name}: expected {wanted}, got {card.geometry}")
        k, v = (cuda.import_(handle, wanted.shape, card.dtype) for handle in card.handles)
        return cls(name, wanted, cuda, k, v, owner=False)

    def write(self, spans: Sequence[PageRun], k_new: Any, v_new: Any, token_indices: NDArray[np.int64]) -> None:
        """Copies tokens `token_indices` of k_new and v_new [L, T, Hkv, D] to `spans`, in order.

        They are `DeviceArray`s in the pool's precision, or float32 arrays of the host. `ValueError` as in `HostPool`.
        """
        check_spans(self.geometry, spans, len(token_indices))
        self.cuda.bind_thread()
        keep: list[Any] = []  # host copies that must live until the transfer is over
        for pool, new in ((self.k, k_new), (self.v, v_new)):
            start = 0
            for span in spans:
                for run in _runs(token_indices[start : start + span.count]):
                    self._copy(pool, span.page, span.offset + run.start, new, run.first, run.count, keep)
                start += span.count
        self.cuda.synchronize()

    def _copy(
        self, pool: DeviceArray, page: int, offset: int, new: Any, token: int, count: int, keep: list[Any]
    ) -> None:
        item, (layers, _, _, groups, size) = pool.item_bytes, self.geometry.shape
        width = count * groups * size * item
        target = pool.pointer + (page * pool.strides[1] + offset * pool.strides[2]) * item
        if isinstance(new, DeviceArray):
            if new.dtype != pool.dtype or new.shape[2:] != (groups, size) or new.strides[1:] != pool.strides[2:]:
                raise ValueError(f"k_new, v_new: expected {pool.dtype} [L, T, {groups}, {size}], got {new}")
            source, pitch = new.pointer + token * new.strides[1] * item, new.strides[0] * item
        else:
            rows = np.ascontiguousarray(to_bits(np.asarray(new)[:, token : token + count], pool.dtype))
            keep.append(rows)
            source, pitch = rows.ctypes.data, width
        self.cuda.copy_rows(target, pool.strides[0] * item, source, pitch, width, layers)

    def scrub(self, pages: Iterable[int]) -> None:
        """Zeroes pages, so that their next owner cannot see what was in them."""
        numbers = sorted(pages)
        self.cuda.bind_thread()
        for page in numbers:
            if not NULL_PAGE < page < self.geometry.num_pages:
                raise ValueError(f"pages: expected 1..{self.geometry.num_pages - 1}, got {page}")
        for run in _runs(np.array(numbers, dtype=np.int64)):
            for pool in (self.k, self.v):
                page, layer = pool.strides[1] * pool.item_bytes, pool.strides[0] * pool.item_bytes
                self.cuda.zero_rows(pool.pointer + run.first * page, layer, run.count * page, self.geometry.layers)
        if numbers:
            self.cuda.synchronize()

    def copy_spans(self, source: DevicePool, spans: Sequence[PageRun], head: int = 0) -> None:
        """Copies token positions from the same place of a pool on any device: its heads from `head` on, as many as are
        here."""
        check_spans(self.geometry, spans, sum(span.count for span in spans))
        self.cuda.bind_thread()
        for pool, other in ((self.k, source.k), (self.v, source.v)):
            item, (layer, page, token, size, _) = pool.item_bytes, pool.strides
            layer_there, page_there, token_there = other.strides[:3]
            for span in spans:
                to = pool.pointer + (span.page * page + span.offset * token) * item
                there = other.pointer + (span.page * page_there + span.offset * token_there + head * size) * item
                if token == token_there:  # all heads: a layer is one piece
                    width, layers = span.count * token * item, pool.shape[0]
                    self.cuda.copy_rows(to, layer * item, there, layer_there * item, width, layers)
                    continue
                for i in range(pool.shape[0]):
                    rows = to + i * layer * item, token * item, there + i * layer_there * item, token_there * item
                    self.cuda.copy_rows(*rows, token * item, span.count)
        self.cuda.synchronize()

    def close(self) -> None:
        """Frees or unmaps the memory; may be called twice. Others must have unmapped it before the owner frees it."""
        if not self._open:
            return
        self._open = False
        if self.owner and self.name:
            _path(self.name).unlink(missing_ok=True)
        for array in (self.k, self.v):
            if self.owner:
                self.cuda.free(array)
            else:
                self.cuda.close_import(array)

    def __enter__(self) -> DevicePool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class MirroredPool:
    """The thinker's pool, with the performer's pool on another device kept equal to it; or the pools of all ranks of a
    group, each with its share of the heads."""

    def __init__(self, local: DevicePool, *remotes: DevicePool) -> None:
        wanted = replace(local.geometry, kv_heads=local.geometry.kv_heads // len(remotes))
        for remote in remotes:
            if remote.geometry != wanted or local.k.dtype != remote.k.dtype:
                raise PoolError(f"pool {remote.name}: expected {wanted}, got {remote.geometry}")
        self.local, self.remotes = local, remotes
        self.geometry = local.geometry

    @property
    def k(self) -> DeviceArray:
        return self.local.k

    @property
    def v(self) -> DeviceArray:
        return self.local.v

    def write(self, spans: Sequence[PageRun], k_new: Any, v_new: Any, token_indices: NDArray[np.int64]) -> None:
        """Writes to the local pool, then copies the same places to the other devices."""
        self.local.write(spans, k_new, v_new, token_indices)
        for rank, remote in enumerate(self.remotes):
            remote.copy_spans(self.local, spans, rank * remote.geometry.kv_heads)

    def scrub(self, pages: Iterable[int]) -> None:
        numbers = list(pages)
        for pool in (self.local, *self.remotes):
            pool.scrub(numbers)

    def close(self) -> None:
        for pool in (*self.remotes, self.local):
            pool.close()


@dataclass(frozen=True)
class _Run:
    start: int  # position in the list
    first: int  # the number that stands there
    count: int


def _runs(numbers: NDArray[np.int64]) -> list[_Run]:
    """Maximal pieces of a list in which each number is one more than the last."""
    breaks = [0, *(np.flatnonzero(np.diff(numbers) != 1) + 1).tolist(), len(numbers)]
    return [_Run(a, int(numbers[a]), b - a) for a, b in itertools.pairwise(breaks) if b > a]


def to_bits(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """float32 values in a pool's precision; bfloat16, which numpy lacks, as its 16 bits rounded to nearest even."""
    if dtype == "float32":
        return values
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _publish(name: str, card: PoolCard) -> None:
    """Writes how to map a pool. PoolError if the name is taken."""
    path = _path(name)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise PoolError(f"pool {name}: expected an unused name, got one that exists ({path})") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(card.pack())


def _path(name: str) -> Path:
    if not _NAME.fullmatch(name) or name.startswith("."):
        raise PoolError(f"pool name: expected letters, digits, '.', '_' and '-', got {name!r}")
    return SHM_DIRECTORY / name


def name_of(link: str, rank: int) -> str:
    """Of the pool of a rank in a performer group; rank 0 is the performer of whoever has no group."""
    return f"{link}-{rank}" if link and rank else link


def memory_of(device: str) -> Memory:
    """The memory of a device (see `Devices`). `CudaError`."""
    return HostRuntime() if device == CPU else CudaRuntime(int(device))


def pool_bytes(geometry: PoolGeometry, dtype: str) -> int:
    """Device memory of k and v together."""
    return 2 * int(np.prod(geometry.shape, dtype=np.int64)) * ITEM_BYTES[dtype]
