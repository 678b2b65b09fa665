"""Messages <-> bytes, for the BLS calls of `duplex` to its stages.

A message travels as one UINT8 tensor, because every tensor of a call costs: the secret of the run (jobs only), the
length of the header, the header, then the arrays that it names by shape, each on an 8-byte boundary.

    | 32 bytes | uint32 n | n bytes of MessagePack | padding | array | padding | array ...

The header is checked against the types of `runtime/messages.py`, fields and ranges included, before anybody sees it,
and nothing at all is read of a job without the secret. An error is no message but the text `CODE: what` of a Triton
error.
"""

from __future__ import annotations

import hmac
import math
import re
import struct
from typing import Any, get_args

import msgspec
import numpy as np

from ..runtime.messages import CODES, Job, Result, SessionError, UInt8

SECRET_BYTES = 32

_LENGTH = struct.Struct("<I")
_ALIGNMENT = 8
_CODED = re.compile(rf"\b({'|'.join(CODES)}): (.*)", re.DOTALL)


class WireError(ValueError):
    """Bytes that are no message, or an object that cannot be one."""


class Refused(PermissionError):
    """A job that does not come from `duplex`."""


def encode(message: Job | Result, secret: bytes = b"") -> UInt8:
    """A message as uint8 [n], behind the secret if it is a job. Raises WireError."""
    arrays: list[np.ndarray] = []

    def shape(array: Any) -> list[int]:
        if not isinstance(array, np.ndarray):
            raise WireError(f"message: expected one of messages.py, got {type(array).__name__}")
        arrays.append(array)
        return list(array.shape)

    header = msgspec.msgpack.encode(message, enc_hook=shape)
    start = end = len(secret) + _LENGTH.size + len(header)
    places: list[tuple[int, np.ndarray]] = []
    for array in arrays:
        at = end + -end % _ALIGNMENT
        end = at + array.nbytes
        places.append((at, array))
    packed = np.empty(end, np.uint8)
    packed.data[:start] = secret + _LENGTH.pack(len(header)) + header
    for at, array in places:
        packed.data[start:at] = bytes(at - start)
        start = at + array.nbytes
        if array.nbytes:  # memoryview casts nothing that is empty
            packed.data[at:start] = np.ascontiguousarray(array).data.cast("B")
    return packed


def decode_job(packed: UInt8, secret: bytes) -> Job:
    """The job of uint8 [n], a copy of it. Raises Refused before it reads anything, or WireError."""
    if len(secret) != SECRET_BYTES or not hmac.compare_digest(packed.data[:SECRET_BYTES], secret):
        raise Refused("message: this model takes jobs of the duplex model alone")
    return _decode(packed[SECRET_BYTES:].copy(), Job)


def decode_result(packed: UInt8) -> Any:
    """The result of uint8 [n], its arrays being views of it. Raises WireError."""
    return _decode(packed, Result)


def _decode(packed: UInt8, kind: Any) -> Any:
    if len(packed) < _LENGTH.size:
        raise WireError(f"message: expected a header, got {len(packed)} bytes")
    (length,) = _LENGTH.unpack_from(packed.data)
    end = _LENGTH.size + length

    def array(expected: Any, dimensions: Any) -> np.ndarray:
        nonlocal end
        dtype = np.dtype(get_args(get_args(expected)[1])[0])
        if not isinstance(dimensions, list) or not all(type(n) is int and n >= 0 for n in dimensions):
            raise ValueError(f"expected the shape of an array, got {dimensions!r}")
        start = end + -end % _ALIGNMENT
        end = start + math.prod(dimensions) * dtype.itemsize
        if end > len(packed):
            raise ValueError(f"expected {end} bytes in all, got {len(packed)}")
        return packed[start:end].view(dtype).reshape(dimensions)

    try:
        message = msgspec.msgpack.decode(packed.data[_LENGTH.size : end], type=kind, dec_hook=array)
    except (ValueError, RecursionError) as error:  # msgspec's own is a ValueError that names field and type
        raise WireError(f"message: {error}") from None
    if end != len(packed):
        raise WireError(f"message: expected {end} bytes, got {len(packed)}")
    return message


def error_text(error: Exception) -> str:
    """`CODE: what` of any exception; one that is no SessionError becomes INTERNAL."""
    return str(error) if isinstance(error, SessionError) else f"INTERNAL: {type(error).__name__}: {error}"


def read_error(text: str, where: str) -> SessionError:
    """The SessionError behind an error text. One without a code is Triton's own: `where` is out of order."""
    found = _CODED.search(text)
    return SessionError(found[1], found[2]) if found else SessionError("UNAVAILABLE", f"{where}: {text}")
