"""Messages <-> named tensors, for the BLS calls between `duplex`, `thinker` and `performer`.

A message travels as one JSON header (tensor `message`, BYTES [1]) plus its arrays as tensors of their own, under the
names of their fields: a unit's sound and picture are copied once into shared memory and never through JSON. Results are
messages too (a perceive job's is a number, that of open and close is null). An error is no message but the text
`CODE: what` of a Triton error. Nothing here can run code: unknown types, fields and codes are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from . import messages
from .messages import SessionError

HEADER = "message"
CODES = (
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "RESOURCE_EXHAUSTED",
    "UNAVAILABLE",
    "ABORTED",
    "INTERNAL",
)

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
# What an array field must be: number type and number of axes. Names are unique over all messages.
_ARRAYS: dict[str, tuple[type, int]] = {
    "pcm": (np.float32, 1),
    "frames": (np.uint8, 4),
    "page_ids": (np.int64, 1),
    "ranges": (np.int64, 2),
    "z_video": (np.float32, 2),
    "z_audio": (np.float32, 2),
}
_TYPE = "$type"  # key of the class name in a header object
_CODED = re.compile(rf"\b({'|'.join(CODES)}): (.*)", re.DOTALL)


class WireError(ValueError):
    """Tensors that are no message, or an object that cannot be one; a bug or a version mismatch, never a user's."""


def encode(message: object) -> dict[str, np.ndarray]:
    """Tensors of a message (a dataclass of `messages.py`, a number or None): `message` and its arrays."""
    tensors: dict[str, np.ndarray] = {}
    header = _flatten(message, tensors)
    tensors[HEADER] = np.array([json.dumps(header, allow_nan=False).encode()], dtype=np.object_)
    return tensors


def decode(tensors: Mapping[str, np.ndarray]) -> Any:
    """The message of `tensors`. Its arrays are those of `tensors`, not copies. Raises WireError."""
    if HEADER not in tensors or tensors[HEADER].size != 1:
        raise WireError(f"{HEADER}: expected 1 JSON header, got tensors {sorted(tensors)}")
    try:
        header = json.loads(tensors[HEADER].reshape(-1)[0])
    except (ValueError, TypeError, RecursionError) as error:
        raise WireError(f"{HEADER}: expected JSON, got {error}") from None
    return _build(header, tensors)


def error_text(error: Exception) -> str:
    """`CODE: what` of any exception; one that is no SessionError becomes INTERNAL."""
    return str(error) if isinstance(error, SessionError) else f"INTERNAL: {type(error).__name__}: {error}"


def read_error(text: str, where: str) -> SessionError:
    """The SessionError behind an error text. One without a code is Triton's own: `where` is out of order."""
    found = _CODED.search(text)
    return SessionError(found[1], found[2]) if found else SessionError("UNAVAILABLE", f"{where}: {text}")


def _flatten(value: object, tensors: dict[str, np.ndarray]) -> object:
    """JSON form of a message; its arrays go to `tensors`."""
    if not is_dataclass(value) or isinstance(value, type):
        return value
    if _TYPES.get(type(value).__name__) is not type(value):
        raise WireError(f"message: expected one of {', '.join(_TYPES)}, got {type(value).__name__}")
    header: dict[str, object] = {_TYPE: type(value).__name__}
    for field in fields(value):
        item = getattr(value, field.name)
        if isinstance(item, np.ndarray):
            _check_array(field.name, item)
            tensors[field.name] = item
        else:
            header[field.name] = _flatten(item, tensors)
    return header


def _build(value: object, tensors: Mapping[str, np.ndarray]) -> object:
    if not isinstance(value, dict) or _TYPE not in value:
        return value
    kind = _TYPES.get(str(value[_TYPE]))
    if kind is None:
        raise WireError(f"message: expected one of {', '.join(_TYPES)}, got {value[_TYPE]!r}")
    names = {field.name for field in fields(kind)}
    arrays = names & set(_ARRAYS)
    given = set(value) - {_TYPE}
    if given != names - arrays or not arrays <= set(tensors):
        raise WireError(
            f"{kind.__name__}: expected the fields {sorted(names)}, got {sorted(given)} and tensors {sorted(tensors)}"
        )
    items: dict[str, Any] = {name: _build(item, tensors) for name, item in value.items() if name != _TYPE}
    for name in arrays:
        _check_array(name, tensors[name])
        items[name] = tensors[name]
    if "slots" in items:  # JSON knows no tuples
        items["slots"] = tuple(items["slots"])
    return kind(**items)


def _check_array(name: str, array: np.ndarray) -> None:
    expected = _ARRAYS.get(name)
    if expected is None or array.dtype != expected[0] or array.ndim != expected[1]:
        wanted = f"{np.dtype(expected[0])} with {expected[1]} axes" if expected else f"one of {', '.join(_ARRAYS)}"
        raise WireError(f"{name}: expected {wanted}, got {array.dtype} {list(array.shape)}")
