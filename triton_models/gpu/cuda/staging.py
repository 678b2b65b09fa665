"""Inputs or outputs of a captured call in one block of host memory, so that one copy moves them all. No torch here.

A block of device memory with the same layout is its other half; who owns the two is the business of the executor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .cuda_runtime import ITEM_BYTES

ALIGNMENT = 256  # bytes; what cudaMalloc gives, so that kernels may use their widest loads
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Slot:
    """Shape (batch first) and type of one tensor. `ragged`: axis 1 may be shorter and is then filled with zeros."""

    shape: tuple[int, ...]
    dtype: str
    ragged: bool = False

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class Layout:
    """Where each tensor lies in a block: `places` in bytes, `bytes` in all (at least 1)."""

    def __init__(self, slots: Mapping[str, Slot]) -> None:
        self.slots = dict(slots)
        self.places: dict[str, int] = {}
        size = 0
        for name, slot in slots.items():
            self.places[name] = size
            size += -(-slot.bytes // ALIGNMENT) * ALIGNMENT
        self.bytes = max(size, 1)


class HostBlock:
    """The host half of a block as numpy arrays over `memory`, a writable buffer of `layout.bytes` bytes."""

    def __init__(self, layout: Layout, memory: Any) -> None:
        self.layout = layout
        flat = np.frombuffer(memory, dtype=np.uint8)
        self.arrays: Arrays = {}
        for name, slot in layout.slots.items():
            place = layout.places[name]
            # numpy lacks bfloat16: its bits are kept as they are.
            kind = "uint16" if slot.dtype == "bfloat16" else slot.dtype
            self.arrays[name] = flat[place : place + slot.bytes].view(kind).reshape(slot.shape)

    def fill(self, inputs: Mapping[str, np.ndarray], rows: int) -> None:
        """Writes the first `rows` rows of every tensor, zeroes the rest. `ValueError` names what does not fit."""
        for name, slot in self.layout.slots.items():
            value, target = inputs.get(name), self.arrays[name]
            if value is None:
                raise ValueError(f"{name}: expected {_describe(slot, rows)}, got nothing")
            wanted = (rows, *slot.shape[1:])
            if slot.ragged and value.ndim > 1 and value.shape[1] <= slot.shape[1]:
                wanted = (rows, value.shape[1], *slot.shape[2:])
            if value.shape != wanted or value.dtype != target.dtype:
                raise ValueError(f"{name}: expected {_describe(slot, rows)}, got {value.dtype} {list(value.shape)}")
            if slot.ragged:
                target[:rows, : value.shape[1]] = value
                target[:rows, value.shape[1] :] = 0
            else:
                target[:rows] = value
            target[rows:] = 0

    def copies(self, rows: int) -> Arrays:
        """The first `rows` rows of every tensor, as arrays of their own."""
        return {name: array[:rows].copy() for name, array in self.arrays.items()}


def _describe(slot: Slot, rows: int) -> str:
    return f"{slot.dtype} {[rows, *slot.shape[1:]]}" + (" at most" if slot.ragged else "")
