"""The wire contract of the `duplex` model, in one place: metadata -> shapes, unit -> request, response -> unit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from tritonclient.grpc import InferInput, InferResult

from client.errors import DuplexError
from client.units import FRAMES_PER_UNIT, UNIT_MS, UnitResponse, UnitShape, UserUnit


class TensorMetadata(Protocol):
    """One tensor of KServe's ModelMetadataResponse."""

    name: str
    datatype: str
    shape: Sequence[int]


def read_shape(model: str, inputs: Sequence[TensorMetadata]) -> UnitShape:
    """Finds N, H and W in the model metadata.

    Raises DuplexError (INVALID_ARGUMENT) when the model is not one of this contract.
    """
    found = {t.name: (t.datatype, [int(n) for n in t.shape]) for t in inputs}
    kind, pcm = found.get("pcm", ("", []))
    if kind != "FP32" or len(pcm) != 1 or pcm[0] <= 0 or pcm[0] * 1000 % UNIT_MS:
        raise DuplexError(
            "INVALID_ARGUMENT", f"model {model}: expected an input pcm FP32 [samples of a unit], got {kind} {pcm}"
        )
    kind, frames = found.get("frames", ("", []))
    if kind != "UINT8" or len(frames) != 4 or frames[0] != FRAMES_PER_UNIT or frames[3] != 3 or min(frames) <= 0:
        raise DuplexError(
            "INVALID_ARGUMENT", f"model {model}: expected an input frames UINT8 [4, H, W, 3], got {kind} {frames}"
        )
    return UnitShape(samples=pcm[0], height=frames[1], width=frames[2])


def _tensor(name: str, value: np.ndarray, datatype: str) -> InferInput:
    tensor = InferInput(name, list(value.shape), datatype)
    tensor.set_data_from_numpy(value)
    return tensor


def _bytes(name: str, text: str) -> InferInput:
    return _tensor(name, np.array([text.encode()], dtype=np.object_), "BYTES")


def encode(
    model: str,
    unit: UserUnit,
    session_id: int | str,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One request of the stream, in the form that tritonclient's `stream_infer` takes.

    options: given with the first unit of a session and only there; it makes the request a start.
    """
    inputs = [
        _tensor("pcm", np.ascontiguousarray(unit.pcm), "FP32"),
        _tensor("frames", np.ascontiguousarray(unit.frames), "UINT8"),
        _tensor("unit_index", np.array([unit.index], dtype=np.int64), "INT64"),
    ]
    if unit.text:
        inputs.append(_bytes("text", unit.text))
    if options is not None:
        inputs.append(_bytes("options", json.dumps(dict(options))))
    elif unit.interrupt:
        inputs.append(_bytes("options", json.dumps({"interrupt": True})))
    return {
        "model_name": model,
        "inputs": inputs,
        "request_id": str(unit.index),
        "sequence_id": session_id,
        "sequence_start": options is not None,
        "sequence_end": unit.end,
    }


def _read(result: InferResult, name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    value = result.as_numpy(name)
    if value is None or value.shape != shape or value.dtype != dtype:
        got = "nothing" if value is None else f"{value.dtype} {list(value.shape)}"
        raise DuplexError("INTERNAL", f"{name}: expected {np.dtype(dtype)} {list(shape)} from the server, got {got}")
    return value


def decode(result: InferResult, shape: UnitShape, received: float) -> UnitResponse:
    """One response of the stream. Raises DuplexError (INTERNAL) when it breaks the contract."""
    text = {name: _read(result, name, (1,), np.object_)[0] for name in ("state", "text", "info")}
    try:
        info = json.loads(text["info"])
    except ValueError as error:
        raise DuplexError("INTERNAL", f"info: expected JSON from the server, got {text['info'][:80]!r}") from error
    return UnitResponse(
        unit_index=int(_read(result, "unit_index", (1,), np.int64)[0]),
        state=text["state"].decode(errors="replace"),
        text=text["text"].decode(errors="replace"),
        pcm=_read(result, "pcm", (shape.samples,), np.float32),
        frames=_read(result, "frames", shape.frames, np.uint8),
        info=info if isinstance(info, dict) else {},
        received=received,
    )
