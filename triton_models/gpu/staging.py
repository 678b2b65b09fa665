"""Inputs and outputs of a captured call: one pinned buffer and one device buffer for all tensors of a direction.

A call then needs one copy each way, whatever the number of tensors, and both copies are nodes of its CUDA graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 256  # bytes; what cudaMalloc gives, so that kernels may use their widest loads


@dataclass(frozen=True)
class Slot:
    """Shape (batch first) and type of one tensor. `ragged`: axis 1 may be shorter and is then filled with zeros."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    ragged: bool = False

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class Staging:
    """Tensors of fixed shape, twice: `host` (pinned) and `device`. On a CPU both are the same memory."""

    def __init__(self, slots: Mapping[str, Slot], device: torch.device) -> None:
        self.slots = dict(slots)
        places, size = {}, 0
        for name, slot in slots.items():
            places[name] = size
            size += -(-slot.bytes // ALIGNMENT) * ALIGNMENT
        self._host = torch.zeros(max(size, 1), dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._device = torch.zeros_like(self._host, device=device) if device.type == "cuda" else self._host
        self.host = {name: _view(self._host, places[name], slot) for name, slot in slots.items()}
        self.device = {name: _view(self._device, places[name], slot) for name, slot in slots.items()}
        self._arrays = {name: t.numpy() for name, t in self.host.items() if t.dtype != torch.bfloat16}

    def fill(self, inputs: Mapping[str, np.ndarray], rows: int) -> None:
        """Writes the first `rows` rows of the host tensors, zeroes the rest. `ValueError` names what does not fit."""
        for name, slot in self.slots.items():
            value = inputs.get(name)
            if value is None:
                raise ValueError(f"{name}: expected {_describe(slot, rows)}, got nothing")
            target = self._arrays[name]
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

    def upload(self) -> None:
        """Host to device; a no-op on a CPU."""
        if self._device is not self._host:
            self._device.copy_(self._host, non_blocking=True)

    def download(self) -> None:
        """Device to host; a no-op on a CPU."""
        if self._device is not self._host:
            self._host.copy_(self._device, non_blocking=True)

    def arrays(self, rows: int) -> dict[str, np.ndarray]:
        """Copies of the first `rows` rows of the host tensors."""
        return {name: array[:rows].copy() for name, array in self._arrays.items()}


def _view(buffer: Tensor, place: int, slot: Slot) -> Tensor:
    return buffer[place : place + slot.bytes].view(slot.dtype).view(slot.shape)


def _describe(slot: Slot, rows: int) -> str:
    name = str(slot.dtype).removeprefix("torch.")
    return f"{name} {[rows, *slot.shape[1:]]}" + (" at most" if slot.ragged else "")
