"""The KV pool: K and V pages of every session, in POSIX shared memory that thinker and performer map by name.

This is the KV link on a CPU: the thinker writes pages, the performer reads them in place and only page ids travel.
A pool is one file of /dev/shm (what `shm_open` makes on Linux). It is mapped with `mmap` and not with
`multiprocessing.shared_memory`, whose resource tracker (Python < 3.13) also registers processes that merely attach, and
unlinks the segment under the feet of the others when the first of them exits.

Layout: a header page (magic, geometry as JSON), then k, then v: float32 [L, n_pages, page, Hkv, D] on page boundaries.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engine_builder.config import ModelConfig

from ..messages import Float32

SHM_DIRECTORY = Path("/dev/shm")
NULL_PAGE = 0  # pads short page tables: never allocated, never written, always zero

_MAGIC = b"WSTKVP01"
_PREFIX = struct.Struct("<8s32sI")  # magic, SHA-256 of the geometry, its length as JSON
_HEADER_BYTES = 4096
_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")


class PoolError(RuntimeError):
    """The pool cannot be made or is not the one asked for; the message says what was expected and what was found."""


class PageRun(Protocol):
    """`count` consecutive token positions of `page` from `offset` on; `kv_cache.Span` is one."""

    @property
    def page(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def count(self) -> int: ...


class Pool(Protocol):
    """What both ends of the KV link ask of a pool, wherever its memory is: `KVPool` here, `gpu.device_pool` on GPUs."""

    @property
    def geometry(self) -> PoolGeometry: ...
    @property
    def k(self) -> Any:
        """[L, n_pages, page, Hkv, D] as the engines of the same target take it."""
        ...

    @property
    def v(self) -> Any: ...
    def write(self, spans: Sequence[PageRun], k_new: Any, v_new: Any, token_indices: NDArray[np.int64]) -> None: ...
    def scrub(self, pages: Iterable[int]) -> None: ...
    def close(self) -> None: ...
    def unlink(self) -> None: ...


@dataclass(frozen=True)
class PoolGeometry:
    """What both sides of the KV link must agree on."""

    model_digest: str
    layers: int
    num_pages: int
    page_tokens: int
    kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, config: ModelConfig, num_pages: int, page_tokens: int) -> PoolGeometry:
        if num_pages < 2:
            raise PoolError(f"num_pages: expected at least 2 (page 0 is the null page), got {num_pages}")
        if page_tokens < 1:
            raise PoolError(f"page_tokens: expected at least 1, got {page_tokens}")
        b = config.backbone
        return cls(config.digest(), b.layers, num_pages, page_tokens, b.kv_heads, b.head_dim)

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Shape of k and of v: [L, n_pages, page, Hkv, D]."""
        return self.layers, self.num_pages, self.page_tokens, self.kv_heads, self.head_dim

    @property
    def array_bytes(self) -> int:
        """Bytes of k or of v, rounded up to whole memory pages."""
        size = int(np.prod(self.shape, dtype=np.int64)) * np.dtype(np.float32).itemsize
        return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE

    @property
    def total_bytes(self) -> int:
        return _HEADER_BYTES + 2 * self.array_bytes

    def header(self) -> bytes:
        text = json.dumps(asdict(self), sort_keys=True).encode()
        return _PREFIX.pack(_MAGIC, hashlib.sha256(text).digest(), len(text)) + text


class KVPool:
    """Arrays `k` and `v`, float32 [L, n_pages, page, Hkv, D], of one named pool.

    Made by `create` (the thinker: writable, owner) or `open` (the performer: read-only). There is one writer; a reader
    looks at a page once the message that names it has arrived, which orders the two.
    """

    def __init__(self, name: str, geometry: PoolGeometry, mapping: mmap.mmap, owner: bool) -> None:
        self.name = name
        self.geometry = geometry
        self.owner = owner
        self._mapping: mmap.mmap | None = mapping
        count = int(np.prod(geometry.shape, dtype=np.int64))
        flat = [
            np.frombuffer(mapping, dtype=np.float32, count=count, offset=_HEADER_BYTES + i * geometry.array_bytes)
            for i in range(2)
        ]
        self.k: Float32 = flat[0].reshape(geometry.shape)
        self.v: Float32 = flat[1].reshape(geometry.shape)

    @classmethod
    def create(cls, name: str, config: ModelConfig, num_pages: int, page_tokens: int) -> KVPool:
        """Makes a zeroed pool. `PoolError` if the name is taken or the shared memory has no room.

        The space is allocated here: a sparse file would turn a full /dev/shm into SIGBUS in mid-conversation.
        """
        geometry = PoolGeometry.of(config, num_pages, page_tokens)
        path = _path(name)
        free = free_bytes()
        if geometry.total_bytes > free:
            raise PoolError(
                f"pool {name}: expected {_mib(geometry.total_bytes)} free in {SHM_DIRECTORY} for {num_pages} pages of "
                f"{page_tokens} tokens, got {_mib(free)}; lower the number of pages or enlarge the shared memory "
                "(docker run --shm-size)"
            )
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise PoolError(f"pool {name}: expected an unused name, got one that exists ({path})") from None
        try:
            os.posix_fallocate(descriptor, 0, geometry.total_bytes)
            mapping = mmap.mmap(descriptor, geometry.total_bytes)
            os.pwrite(descriptor, geometry.header(), 0)  # last: whoever opens a half-made pool finds no magic
        except OSError as error:
            path.unlink(missing_ok=True)
            raise PoolError(f"pool {name}: cannot allocate {_mib(geometry.total_bytes)}: {error}") from None
        finally:
            os.close(descriptor)
        return cls(name, geometry, mapping, owner=True)

    @classmethod
    def open(cls, name: str, config: ModelConfig) -> KVPool:
        """Maps an existing pool read-only; `PoolError` unless it exists, is complete and was made for `config`."""
        path = _path(name)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise PoolError(f"pool {name}: expected {path} made by the thinker, got no such file") from None
        try:
            geometry = _read_header(name, os.pread(descriptor, _HEADER_BYTES, 0))
            wanted = PoolGeometry.of(config, geometry.num_pages, geometry.page_tokens)
            if geometry != wanted:
                raise PoolError(f"pool {name}: expected {wanted}, got {geometry}")
            size = os.fstat(descriptor).st_size
            if size != geometry.total_bytes:
                raise PoolError(f"pool {name}: expected {geometry.total_bytes} bytes, got {size}")
            mapping = mmap.mmap(descriptor, geometry.total_bytes, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
        return cls(name, geometry, mapping, owner=False)

    def write(self, spans: Sequence[PageRun], k_new: Float32, v_new: Float32, token_indices: NDArray[np.int64]) -> None:
        """Copies tokens `token_indices` of k_new and v_new [L, T, Hkv, D] to `spans`, in order.

        `ValueError` if the spans do not hold exactly these tokens, leave their page or touch the null page.
        """
        g = self.geometry
        held = 0
        for span in spans:
            inside = span.offset >= 0 and span.count >= 0 and span.offset + span.count <= g.page_tokens
            if not (NULL_PAGE < span.page < g.num_pages and inside):
                raise ValueError(f"spans: expected pages 1..{g.num_pages - 1} of {g.page_tokens} tokens, got {span}")
            held += span.count
        if held != len(token_indices):
            raise ValueError(f"spans: expected room for {len(token_indices)} tokens, got {held}")
        tokens: list[int] = token_indices.tolist()
        at = 0
        for span in spans:
            place, stop = span.offset, at + span.count
            while at < stop:  # by runs of tokens that follow each other: slices, where a list would be gathered first
                first = end = tokens[at]
                while at < stop and tokens[at] == end:
                    at, end = at + 1, end + 1
                self.k[:, span.page, place : place + end - first] = k_new[:, first:end]
                self.v[:, span.page, place : place + end - first] = v_new[:, first:end]
                place += end - first

    def scrub(self, pages: Iterable[int]) -> None:
        """Zeroes pages, so that their next owner cannot see what was in them."""
        for page in pages:
            if not NULL_PAGE < page < self.geometry.num_pages:
                raise ValueError(f"pages: expected 1..{self.geometry.num_pages - 1}, got {page}")
            self.k[:, page] = 0
            self.v[:, page] = 0

    def close(self) -> None:
        """Drops the mapping; may be called twice. Arrays that a caller still holds stay valid until it drops them."""
        if self._mapping is None:
            return
        mapping, self._mapping = self._mapping, None
        empty = np.empty((0,) * 5, dtype=np.float32)
        self.k, self.v = empty, empty
        try:
            mapping.close()
        except BufferError:
            del mapping  # a caller keeps a view of an array: the last view unmaps it

    def unlink(self) -> None:
        """Removes the name; the memory goes with the last mapping. Only the owner does, and twice is no error."""
        if self.owner:
            unlink(self.name)

    def __enter__(self) -> KVPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
        self.unlink()


def unlink(name: str) -> bool:
    """Removes a pool by name, as the launcher does for an owner that was killed; False if there was none."""
    try:
        _path(name).unlink()
    except FileNotFoundError:
        return False
    return True


def free_bytes() -> int:
    """Bytes that can still be allocated in shared memory."""
    status = os.statvfs(SHM_DIRECTORY)
    return status.f_bavail * status.f_frsize


def _path(name: str) -> Path:
    if not _NAME.fullmatch(name) or name.startswith("."):
        raise PoolError(f"pool name: expected letters, digits, '.', '_' and '-', got {name!r}")
    return SHM_DIRECTORY / name


def _read_header(name: str, header: bytes) -> PoolGeometry:
    if len(header) < _PREFIX.size or not header.startswith(_MAGIC):
        raise PoolError(f"pool {name}: expected a KV pool ({_MAGIC!r}), got a file that begins {header[:8]!r}")
    _, digest, length = _PREFIX.unpack_from(header)
    text = header[_PREFIX.size : _PREFIX.size + length]
    if hashlib.sha256(text).digest() != digest:
        raise PoolError(f"pool {name}: expected the geometry that its header was sealed with, got a damaged header")
    return PoolGeometry(**json.loads(text))


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
