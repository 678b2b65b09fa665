"""Messages <-> bytes, for the BLS calls between `duplex`, `thinker` and `performer`.

A message travels as one UINT8 tensor: length of the header, header (JSON), then its arrays, each on an 8-byte boundary.

    | uint32 n | n bytes of JSON: fields, and type and shape of each array | padding | array | padding | array ...

One tensor and not one per array, because every tensor of a call costs, and a BYTES tensor more than others. A result is
a message too (a perceive job's is a number, that of open and close is null). An error is no message but the text
`CODE: what` of a Triton error. Nothing here can run code: unknown types, fields and codes are refused.
"""

from __future__ import annotations

import json
import math
import re
import struct
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import messages
from .messages import CODES, SessionError

_TYPES = {
    kind.__name__: kind
    for kind in (
        messages.HistoryView,
        messages.OpenJob,
        messages.PerceiveJob,
        messages.ThinkJob,
        messages.ThinkResult,
        messages.PerformJob,
        messages.PerformResult,
        messages.RenderJob,
        messages.RenderResult,
        messages.CloseJob,
    )
}
_FIELDS = {name: tuple(field.name for field in fields(kind)) for name, kind in _TYPES.items()}
# What an array field must be: number type and number of axes. Names are unique over all messages.
_ARRAYS: dict[str, tuple[np.dtype[Any], int]] = {
    "pcm": (np.dtype(np.float32), 1),
    "frames": (np.dtype(np.uint8), 4),
    "page_ids": (np.dtype(np.int64), 1),
    "ranges": (np.dtype(np.int64), 2),
    "z_video": (np.dtype(np.float32), 2),
    "z_audio": (np.dtype(np.float32), 2),
}
_TYPE = "$type"  # key of the class name in a header object
_SHAPES = "$shapes"  # key of the arrays in the header
_LENGTH = struct.Struct("<I")
_ALIGNMENT = 8
_CODED = re.compile(rf"\b({'|'.join(CODES)}): (.*)", re.DOTALL)

Packed = NDArray[np.uint8]


class WireError(ValueError):
    """Bytes that are no message, or an object that cannot be one; a bug or a version mismatch, never a user's."""


def encode(message: object) -> Packed:
    """A message (a dataclass of `messages.py`, a number or None) as uint8 [n]. Raises WireError."""
    arrays: dict[str, np.ndarray] = {}
    content = _flatten(message, arrays)
    header = json.dumps({"content": content, _SHAPES: {k: a.shape for k, a in arrays.items()}}, allow_nan=False)
    parts = [_LENGTH.pack(len(header)), header.encode("ascii")]
    end = _LENGTH.size + len(header)
    for array in arrays.values():
        padding = -end % _ALIGNMENT
        parts += [bytes(padding), np.ascontiguousarray(array).data.cast("B") if array.size else b""]
        end += padding + array.nbytes
    return np.frombuffer(b"".join(parts), np.uint8)


def decode(packed: Packed) -> Any:
    """The message of uint8 [n]. Its arrays are views of `packed`, read-only if that is. Raises WireError."""
    if packed.dtype != np.uint8 or packed.ndim != 1 or len(packed) < _LENGTH.size:
        raise WireError(f"message: expected uint8 [n], got {packed.dtype} {list(packed.shape)}")
    (length,) = _LENGTH.unpack_from(packed.data)
    start = _LENGTH.size + length
    try:
        header = json.loads(packed[_LENGTH.size : start].tobytes())
        content, shapes = header["content"], header[_SHAPES]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise WireError(f"message: expected a JSON header of {length} bytes, got {error!r}") from None
    return _build(content, _unpack(packed, start, shapes))


def error_text(error: Exception) -> str:
    """`CODE: what` of any exception; one that is no SessionError becomes INTERNAL."""
    return str(error) if isinstance(error, SessionError) else f"INTERNAL: {type(error).__name__}: {error}"


def read_error(text: str, where: str) -> SessionError:
    """The SessionError behind an error text. One without a code is Triton's own: `where` is out of order."""
    found = _CODED.search(text)
    return SessionError(found[1], found[2]) if found else SessionError("UNAVAILABLE", f"{where}: {text}")


def _flatten(value: object, arrays: dict[str, np.ndarray]) -> object:
    """JSON form of a message; its arrays go to `arrays`."""
    if not is_dataclass(value) or isinstance(value, type):
        return value
    name = type(value).__name__
    if _TYPES.get(name) is not type(value):
        raise WireError(f"message: expected one of {', '.join(_TYPES)}, got {name}")
    content: dict[str, object] = {_TYPE: name}
    for field in _FIELDS[name]:
        item = getattr(value, field)
        if isinstance(item, np.ndarray):
            _check_array(field, item.dtype, item.ndim)
            arrays[field] = item
        else:
            content[field] = _flatten(item, arrays)
    return content


def _unpack(packed: Packed, start: int, shapes: object) -> dict[str, np.ndarray]:
    """The arrays behind the header, which must fill the rest exactly."""
    if not isinstance(shapes, dict):
        raise WireError(f"message: expected shapes by name, got {shapes!r}")
    arrays: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
            raise WireError(f"{name}: expected a shape, got {shape!r}")
        dtype = _ARRAYS[name][0] if name in _ARRAYS else None
        _check_array(name, dtype, len(shape))
        start += -start % _ALIGNMENT
        end = start + math.prod(shape) * _ARRAYS[name][0].itemsize
        if end > len(packed):
            raise WireError(f"{name}: expected {end} bytes, got {len(packed)}")
        arrays[name] = packed[start:end].view(dtype).reshape(shape)
        start = end
    if start != len(packed):
        raise WireError(f"message: expected {start} bytes, got {len(packed)}")
    return arrays


def _build(value: object, arrays: dict[str, np.ndarray]) -> object:
    if not isinstance(value, dict) or _TYPE not in value:
        return value
    name = str(value[_TYPE])
    if name not in _TYPES:
        raise WireError(f"message: expected one of {', '.join(_TYPES)}, got {name!r}")
    items: dict[str, Any] = {}
    for field in _FIELDS[name]:
        if field in arrays:
            items[field] = arrays[field]
        elif field in value and field not in _ARRAYS:
            items[field] = _build(value[field], arrays)
        else:
            raise WireError(f"{name}: expected the field {field}, got {sorted(value)} and arrays {sorted(arrays)}")
    if len(value) - 1 != sum(field not in arrays for field in _FIELDS[name]):
        raise WireError(f"{name}: expected the fields {', '.join(_FIELDS[name])}, got {sorted(value)}")
    if "slots" in items:  # JSON knows no tuples
        items["slots"] = tuple(items["slots"])
    return _TYPES[name](**items)


def _check_array(name: str, dtype: np.dtype[Any] | None, axes: int) -> None:
    expected = _ARRAYS.get(name)
    if expected != (dtype, axes):
        wanted = f"{expected[0]} with {expected[1]} axes" if expected else f"one of {', '.join(_ARRAYS)}"
        raise WireError(f"{name}: expected {wanted}, got {dtype} with {axes} axes")
