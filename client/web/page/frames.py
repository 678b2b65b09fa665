"""Binary messages between page and gateway: a 16-byte head, then samples or a strip of pictures.

    u8 kind | u8 0 | u16 0 | u32 unit | f64 time          little-endian

Going up, `time` is when the last sample was taken, by the page's clock in milliseconds; going down it comes back in the
`unit` message. `unit` counts units of the model going down and means nothing going up.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

PCM16, JPEG, RGB = 1, 2, 3
_HEAD = struct.Struct("<BBHId")


@dataclass(frozen=True)
class Frame:
    """One binary message."""

    kind: int
    unit: int
    time: float
    body: bytes


def pack(kind: int, unit: int, body: bytes, time: float = 0.0) -> bytes:
    return _HEAD.pack(kind, 0, 0, unit, time) + body


def unpack(data: bytes) -> Frame:
    """Raises ValueError for what is no such message."""
    if len(data) < _HEAD.size:
        raise ValueError(f"frame: expected a head of {_HEAD.size} bytes, got {len(data)} bytes in all")
    kind, _, _, unit, time = _HEAD.unpack_from(data)
    if kind not in (PCM16, JPEG, RGB):
        raise ValueError(f"frame: expected kind {PCM16} (PCM), {JPEG} (JPEG) or {RGB} (RGB), got {kind}")
    return Frame(kind, unit, time, data[_HEAD.size :])
