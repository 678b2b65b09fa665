"""Messages <-> bytes, for the BLS calls between `duplex`, `thinker` and `performer`.

A message travels as one UINT8 tensor: length of the header, header (JSON), then its arrays, each on an 8-byte boundary.

    | uint32 n | n bytes of JSON | padding | array | padding | array ...

In the header a message is a list: its class, then its fields in their order; a message inside it likewise, and an array
as its shape. One tensor and not one per array, because every tensor of a call costs, and a BYTES tensor more than
others; lists and not names, because that halves what a call spends here. A result is a message too (a perceive job's is
a number, that of open and close is null). An error is no message but the text `CODE: what` of a Triton error. Nothing
here can run code: unknown types, fields and codes are refused.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import fields
from operator import attrgetter
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ..runtime import messages
from ..runtime.messages import CODES, SessionError

_TYPES: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        messages.HistoryView,
        messages.OpenJob,
        messages.PerceiveJob,
        messages.ThinkJob,
        messages.ThinkResult,
        messages.HandOver,
        messages.PerformJob,
        messages.PerformResult,
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
_MESSAGES = {"perceive": "PerceiveJob", "history": "HistoryView"}  # fields that hold a message
_OPTIONAL = {(name, field.name) for name, kind in _TYPES.items() for field in fields(kind) if field.default is None}
_VALUES = {kind: attrgetter(*_FIELDS[name]) for name, kind in _TYPES.items()}  # a message as a tuple
# Where in a message something stands that JSON has no word for: place in its list, name.
_SPECIAL = {
    name: tuple((i, field) for i, field in enumerate(names, 1) if field in (*_ARRAYS, *_MESSAGES, "slots"))
    for name, names in _FIELDS.items()
}
_LENGTH = struct.Struct("<I")
_ALIGNMENT = 8
_CODED = re.compile(rf"\b({'|'.join(CODES)}): (.*)", re.DOTALL)

Packed = NDArray[np.uint8]


class WireError(ValueError):
    """Bytes that are no message, or an object that cannot be one; a bug or a version mismatch, never a user's."""


def encode(message: object) -> Packed:
    """A message (a dataclass of `messages.py`, a number or None) as uint8 [n]. Raises WireError."""
    arrays: list[np.ndarray] = []
    content = message if message is None or type(message) in (int, float) else _flatten(message, arrays)
    try:
        header = orjson.dumps(content)
    except TypeError as error:
        raise WireError(f"message: {error}") from None
    end = _LENGTH.size + len(header)
    places = []
    for array in arrays:
        start = end + -end % _ALIGNMENT
        end = start + array.nbytes
        places.append((start, end, array))
    packed = np.empty(end, np.uint8)
    view = packed.data
    _LENGTH.pack_into(view, 0, len(header))
    end = _LENGTH.size + len(header)
    view[_LENGTH.size : end] = header
    for start, stop, array in places:
        view[end:start] = bytes(start - end)
        if array.nbytes:  # memoryview casts nothing that is empty
            view[start:stop] = (array if array.flags.c_contiguous else np.ascontiguousarray(array)).data.cast("B")
        end = stop
    return packed


def decode(packed: Packed) -> Any:
    """The message of uint8 [n]. Its arrays are views of `packed`, read-only if that is. Raises WireError."""
    if packed.dtype != np.uint8 or packed.ndim != 1 or len(packed) < _LENGTH.size:
        raise WireError(f"message: expected uint8 [n], got {packed.dtype} {list(packed.shape)}")
    (length,) = _LENGTH.unpack_from(packed.data)
    start = _LENGTH.size + length
    if start > len(packed):
        raise WireError(f"message: expected a JSON header of {length} bytes, got {len(packed)} bytes in all")
    try:
        content = orjson.loads(packed.data[_LENGTH.size : start])
    except ValueError as error:
        raise WireError(f"message: expected a JSON header of {length} bytes, got {error!r}") from None
    if not (content is None or type(content) in (int, float, list)):
        raise WireError(f"message: expected a number, null or a list, got {content!r}")
    body = _Body(packed, start)
    message = _build(content, body) if isinstance(content, list) else content
    body.finish()
    return message


def error_text(error: Exception) -> str:
    """`CODE: what` of any exception; one that is no SessionError becomes INTERNAL."""
    return str(error) if isinstance(error, SessionError) else f"INTERNAL: {type(error).__name__}: {error}"


def read_error(text: str, where: str) -> SessionError:
    """The SessionError behind an error text. One without a code is Triton's own: `where` is out of order."""
    found = _CODED.search(text)
    return SessionError(found[1], found[2]) if found else SessionError("UNAVAILABLE", f"{where}: {text}")


class _Body:
    """The arrays behind the header, in the order in which it names them; they must fill the rest exactly."""

    def __init__(self, packed: Packed, start: int) -> None:
        self._packed, self._start = packed, start

    def take(self, name: str, shape: object) -> np.ndarray:
        dtype, _ = _ARRAYS[name]
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
            raise WireError(f"{name}: expected a shape, got {shape!r}")
        _check_array(name, dtype, len(shape))
        start = self._start + -self._start % _ALIGNMENT
        end = start + math.prod(shape) * dtype.itemsize
        if end > len(self._packed):
            raise WireError(f"{name}: expected {end} bytes, got {len(self._packed)}")
        self._start = end
        return self._packed[start:end].view(dtype).reshape(shape)

    def finish(self) -> None:
        if self._start != len(self._packed):
            raise WireError(f"message: expected {self._start} bytes, got {len(self._packed)}")


def _flatten(value: object, arrays: list[np.ndarray]) -> list[Any]:
    """JSON form of a message; its arrays go to `arrays`."""
    values = _VALUES.get(type(value))
    if values is None:
        raise WireError(f"message: expected one of {', '.join(_TYPES)}, got {type(value).__name__}")
    name = type(value).__name__
    content: list[Any] = [name, *values(value)]
    for i, field in _SPECIAL[name]:
        item = content[i]
        if field in _ARRAYS and item is not None:
            _check_array(field, item.dtype, item.ndim)
            arrays.append(item)
            content[i] = item.shape
        elif field in _MESSAGES and item is not None:
            content[i] = _flatten(item, arrays)
    return content


def _build(content: object, body: _Body) -> Any:
    name = content[0] if isinstance(content, list) and content else content
    if not isinstance(content, list) or not isinstance(name, str) or name not in _TYPES:
        raise WireError(f"message: expected one of {', '.join(_TYPES)}, got {name!r}")
    if len(content) != 1 + len(_FIELDS[name]):
        raise WireError(f"{name}: expected the fields {', '.join(_FIELDS[name])}, got {len(content) - 1} values")
    for i, field in _SPECIAL[name]:
        value = content[i]
        if field == "slots":  # JSON knows no tuples
            if not isinstance(value, list):
                raise WireError(f"{name}: expected slots as a list, got {value!r}")
            content[i] = tuple(value)
        elif value is None:
            if (name, field) not in _OPTIONAL:
                raise WireError(f"{name}: expected the field {field}, got null")
        elif field in _ARRAYS:
            content[i] = body.take(field, value)
        else:
            content[i] = _build(value, body)
            if type(content[i]).__name__ != _MESSAGES[field]:
                got = type(content[i]).__name__
                raise WireError(f"{name}: expected {field} to be a {_MESSAGES[field]}, got {got}")
    return _TYPES[name](*content[1:])


def _check_array(name: str, dtype: np.dtype[Any] | None, axes: int) -> None:
    expected = _ARRAYS[name]
    if expected != (dtype, axes):
        raise WireError(f"{name}: expected {expected[0]} with {expected[1]} axes, got {dtype} with {axes} axes")
