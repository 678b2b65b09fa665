"""The wire contract of the `duplex` model, in one place: metadata -> shapes, unit -> request, response -> unit.

Messages are those of the KServe protocol as they are; a layer of tensor objects over them costs a unit 0.3 ms.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from tritonclient.grpc import service_pb2

from .errors import DuplexError
from .units import FRAMES_PER_UNIT, UNIT_MS, UnitResponse, UnitShape, UserUnit

kserve: Any = service_pb2  # its names are made at import: no type checker sees them
_DTYPES = {"FP32": np.dtype(np.float32), "UINT8": np.dtype(np.uint8), "INT64": np.dtype(np.int64)}
_INDEX = struct.Struct("<q")
_LENGTH = struct.Struct("<I")

Found = tuple[Any, bytes]  # InferOutputTensor and its raw content


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


def encode(
    model: str,
    unit: UserUnit,
    session_id: int | str,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """One request of the stream, a ModelInferRequest.

    options: given with the first unit of a session and only there; it makes the request a start.
    """
    request = kserve.ModelInferRequest(model_name=model, id=str(unit.index))
    sequence = request.parameters["sequence_id"]
    if isinstance(session_id, str):
        sequence.string_param = session_id
    else:
        sequence.int64_param = session_id
    request.parameters["sequence_start"].bool_param = options is not None
    request.parameters["sequence_end"].bool_param = unit.end
    _put(request, "pcm", "FP32", unit.pcm.shape, unit.pcm.tobytes())
    _put(request, "frames", "UINT8", unit.frames.shape, unit.frames.tobytes())
    _put(request, "unit_index", "INT64", (1,), _INDEX.pack(unit.index))
    if unit.text:
        _put_text(request, "text", unit.text)
    if options is not None:
        _put_text(request, "options", json.dumps(dict(options), ensure_ascii=False))
    elif unit.interrupt:
        _put_text(request, "options", json.dumps({"interrupt": True}))
    return request


def _put(request: Any, name: str, datatype: str, shape: Sequence[int], data: bytes) -> None:
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    request.raw_input_contents.append(data)


def _put_text(request: Any, name: str, text: str) -> None:
    data = text.encode(errors="replace")  # half an emoji is no character, and no reason to lose the unit
    _put(request, name, "BYTES", (1,), _LENGTH.pack(len(data)) + data)


def decode(result: Any, shape: UnitShape, received: float) -> UnitResponse:
    """One response of the stream, a ModelInferResponse. Raises DuplexError (INTERNAL) when it breaks the contract."""
    found = {t.name: (t, data) for t, data in zip(result.outputs, result.raw_output_contents, strict=False)}
    state, text, info = (_read_text(found, name) for name in ("state", "text", "info"))
    heard = _read_text(found, "heard") if "heard" in found else b""  # where the model writes down what it hears
    try:
        facts = json.loads(info)
    except ValueError as error:
        raise DuplexError("INTERNAL", f"info: expected JSON from the server, got {info[:80]!r}") from error
    return UnitResponse(
        unit_index=int(_read(found, "unit_index", (1,), "INT64")[0]),
        state=state.decode(errors="replace"),
        text=text.decode(errors="replace"),
        pcm=_read(found, "pcm", (shape.samples,), "FP32"),
        frames=_read(found, "frames", shape.frames, "UINT8"),
        info=facts if isinstance(facts, dict) else {},
        received=received,
        heard=heard.decode(errors="replace"),
    )


def _read(found: Mapping[str, Found], name: str, shape: tuple[int, ...], datatype: str) -> np.ndarray:
    """A tensor as a view of the message."""
    tensor, data = found.get(name, (None, b""))
    dtype = _DTYPES[datatype]
    size = math.prod(shape) * dtype.itemsize
    if tensor is None or tensor.datatype != datatype or tuple(tensor.shape) != shape or len(data) != size:
        raise DuplexError("INTERNAL", f"{name}: expected {dtype} {list(shape)} from the server, got {_got(tensor)}")
    return np.frombuffer(data, dtype).reshape(shape)


def _read_text(found: Mapping[str, Found], name: str) -> bytes:
    """The one string of a BYTES tensor: its length, then its bytes."""
    tensor, data = found.get(name, (None, b""))
    whole = tensor is not None and tensor.datatype == "BYTES" and tuple(tensor.shape) == (1,) and len(data) >= 4
    if not whole or _LENGTH.unpack_from(data)[0] != len(data) - _LENGTH.size:
        raise DuplexError("INTERNAL", f"{name}: expected BYTES [1] from the server, got {_got(tensor)}")
    return data[_LENGTH.size :]


def _got(tensor: Any) -> str:
    return "nothing" if tensor is None else f"{_DTYPES.get(tensor.datatype, tensor.datatype)} {list(tensor.shape)}"
