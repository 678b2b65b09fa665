"""A `duplex` model that is not there: a KServe gRPC server in this process, for the client's tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from client.stream.units import UnitShape, UserUnit

SHAPE = UnitShape(samples=2560, height=64, width=64)
UNLOADED = "Request for unknown model: 'duplex' has no available versions"  # Triton's, of a server that ends


@dataclass
class Seen:
    """One request as the server got it."""

    index: int
    session: int | str
    start: bool
    end: bool
    text: str
    options: dict[str, Any] | None
    pcm: np.ndarray
    frames: np.ndarray
    at: float


@dataclass
class FakeDuplex(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers every unit with its own sound and picture; the fields say how it misbehaves."""

    shape: UnitShape = SHAPE
    delay: Callable[[int], float] = lambda unit: 0.0  # seconds before the answer to a unit
    errors: dict[int, str] = field(default_factory=dict)  # unit -> error message instead of an answer
    refuse: dict[int, str] = field(default_factory=dict)  # unit -> error message; with text, it changes nothing
    silent_from: int | None = None  # takes units from here on and answers none
    leave_at: int | None = None  # closes the stream instead of answering this unit
    deaf_at: int | None = None  # closes the stream as if this unit had never come, once
    start_errors: list[str] = field(default_factory=list)  # instead of starting a session, each once
    once: dict[int, str] = field(default_factory=dict)  # unit -> error message instead of an answer, once
    home: str = ""  # token of a fleet's server, in the first answer
    leaves: dict[int, float] = field(default_factory=dict)  # unit -> seconds for which the server still stays
    homes: list[str] = field(default_factory=list)  # header of each stream
    resume_errors: list[str] = field(default_factory=list)  # instead of resuming a session, each once
    heard: dict[int, str] = field(default_factory=dict)  # unit -> what the model heard in it
    swap: tuple[int, int] | None = None  # answers the first with the index of the second
    stuck_after: int | None = None  # reads nothing more after the answer to this unit
    stay_open: bool = False  # does not close the stream after the last unit
    ready: bool = True
    unloaded: int = 0  # questions that are answered as by a server which has begun to end
    parameters: dict[str, str] = field(default_factory=lambda: {"weights": "random (test double)"})
    answer: Callable[[Seen], tuple[str, str, np.ndarray, np.ndarray]] | None = None
    seen: list[Seen] = field(default_factory=list)
    expected: dict[int | str, int] = field(default_factory=dict)  # session -> its next unit
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    async def ModelReady(self, request, context):
        return service_pb2.ModelReadyResponse(ready=self.ready)

    async def ServerMetadata(self, request, context):
        return service_pb2.ServerMetadataResponse(name="fake", version="1")

    async def ModelMetadata(self, request, context):
        if self.unloaded:
            self.unloaded -= 1
            await context.abort(grpc.StatusCode.NOT_FOUND, UNLOADED)
        tensor = service_pb2.ModelMetadataResponse.TensorMetadata
        inputs = [
            tensor(name="pcm", datatype="FP32", shape=[self.shape.samples]),
            tensor(name="frames", datatype="UINT8", shape=self.shape.frames),
            tensor(name="unit_index", datatype="INT64", shape=[1]),
        ]
        return service_pb2.ModelMetadataResponse(name=request.name, versions=["1"], inputs=inputs)

    async def ModelConfig(self, request, context):
        config = model_config_pb2.ModelConfig(name=request.name)
        for key, value in self.parameters.items():
            config.parameters[key].string_value = value
        return service_pb2.ModelConfigResponse(config=config)

    async def ModelStreamInfer(self, request_iterator, context):
        ended = False
        self.homes += [value for name, value in context.invocation_metadata() or () if name == "wan-streamer-home"]
        try:
            async for request in request_iterator:
                unit = read(request)
                if unit.start and unit.index == 0 and self.start_errors:
                    yield service_pb2.ModelStreamInferResponse(error_message=self.start_errors.pop(0))
                    continue
                if unit.start and unit.options and unit.options.get("resume") and unit.session in self.expected:
                    if self.resume_errors:
                        yield service_pb2.ModelStreamInferResponse(error_message=self.resume_errors.pop(0))
                        continue
                    if unit.index == -1:
                        unit.index = self.expected[unit.session]
                if unit.index == self.deaf_at:
                    self.deaf_at = None
                    return
                if self.refuse and (expected := self.expected.get(unit.session, 0)) != unit.index:
                    order = f"INVALID_ARGUMENT: unit_index: expected {expected}, got {unit.index}"
                    yield service_pb2.ModelStreamInferResponse(error_message=order)
                    continue
                if unit.index in self.refuse and unit.text:
                    yield service_pb2.ModelStreamInferResponse(error_message=self.refuse[unit.index])
                    continue
                self.expected[unit.session] = unit.index + 1
                self.seen.append(unit)
                if unit.index == self.leave_at:
                    return
                if self.silent_from is not None and unit.index >= self.silent_from:
                    continue
                if (pause := self.delay(unit.index)) > 0:
                    await asyncio.sleep(pause)
                if unit.index in self.once:
                    yield service_pb2.ModelStreamInferResponse(error_message=self.once.pop(unit.index))
                elif unit.index in self.errors:
                    yield service_pb2.ModelStreamInferResponse(error_message=self.errors[unit.index])
                else:
                    yield self._response(unit)
                ended = unit.end
                if unit.index == self.stuck_after:
                    await asyncio.sleep(3600)
            if self.stay_open:
                ended = False
                await asyncio.sleep(3600)
        finally:
            if not ended:
                self.cancelled.set()

    def _response(self, unit: Seen) -> service_pb2.ModelStreamInferResponse:
        state, text, pcm, frames = "listen", "", unit.pcm, unit.frames
        if self.answer is not None:
            state, text, pcm, frames = self.answer(unit)
        index = self.swap[1] if self.swap and unit.index == self.swap[0] else unit.index
        ms = {"queue": 0.5, "perceive": 4.0, "think": 12.0, "perform": 30.0, "render": 6.0, "total": 53.0}
        info = {"ms": ms, "epoch": 1, "degradation": [], "steps": 4}
        heard = [self.heard[unit.index]] if unit.index in self.heard else []
        if self.home and unit.index == 0:
            info["home"] = self.home
        if unit.index in self.leaves:
            info["leaves_seconds"] = self.leaves[unit.index]
        message = service_pb2.ModelStreamInferResponse()
        response = message.infer_response
        for name, kind, value in (
            ("unit_index", "INT64", np.array([index], np.int64)),
            ("state", "BYTES", np.array([state.encode()], np.object_)),
            ("text", "BYTES", np.array([text.encode()], np.object_)),
            ("pcm", "FP32", pcm),
            ("frames", "UINT8", frames),
            ("info", "BYTES", np.array([json.dumps(info).encode()], np.object_)),
            *(("heard", "BYTES", np.array([words.encode()], np.object_)) for words in heard),
        ):
            response.outputs.add(name=name, datatype=kind, shape=value.shape)
            raw = serialize_byte_tensor(value).item() if kind == "BYTES" else np.ascontiguousarray(value).tobytes()
            response.raw_output_contents.append(raw)
        return message


def read(request: service_pb2.ModelInferRequest) -> Seen:
    raw = {t.name: (t, data) for t, data in zip(request.inputs, request.raw_input_contents, strict=True)}

    def text(name: str) -> str | None:
        return deserialize_bytes_tensor(raw[name][1])[0].decode() if name in raw else None

    tensor, data = raw["frames"]
    options = text("options")
    number = request.parameters["sequence_id"]
    return Seen(
        index=int(np.frombuffer(raw["unit_index"][1], np.int64)[0]),
        session=number.string_param or number.int64_param,
        start=request.parameters["sequence_start"].bool_param,
        end=request.parameters["sequence_end"].bool_param,
        text=text("text") or "",
        options=None if options is None else json.loads(options),
        pcm=np.frombuffer(raw["pcm"][1], np.float32),
        frames=np.frombuffer(data, np.uint8).reshape(tuple(tensor.shape)),
        at=time.monotonic(),
    )


@contextlib.asynccontextmanager
async def serve(fake: FakeDuplex) -> AsyncIterator[tuple[FakeDuplex, grpc.aio.Server]]:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(fake, server)
    fake.url = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield fake, server
    finally:
        await server.stop(0)


@pytest.fixture
async def start_fake() -> AsyncIterator[Callable[..., Awaitable[tuple[FakeDuplex, grpc.aio.Server]]]]:
    """`fake, server = await start_fake(delay=...)`; stopped at the end of the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(**kwargs: Any) -> tuple[FakeDuplex, grpc.aio.Server]:
            return await stack.enter_async_context(serve(FakeDuplex(**kwargs)))

        yield start


@pytest.fixture
def make_unit() -> Callable[..., UserUnit]:
    """A unit of noise that is the same for the same index."""

    def make(index: int, *, text: str = "", end: bool = False) -> UserUnit:
        rng = np.random.default_rng(index)
        pcm = rng.uniform(-0.5, 0.5, SHAPE.samples).astype(np.float32)
        return UserUnit(index, pcm, rng.integers(0, 256, SHAPE.frames, np.uint8), text, end)

    return make
