"""`DuplexClient`: full-duplex sessions with a served model over one gRPC stream each.

    async with await DuplexClient.connect("127.0.0.1:8001") as client:
        async with client.session(options={"seed": 7}) as session:
            talking = asyncio.create_task(session.play(units, Pacer()))
            async for response in session:
                ...

Who does what in a session: `send` waits until fewer units are unanswered than the server takes, and hands the encoded
unit to gRPC. One reader task takes responses off the socket, stamps the time of arrival, and puts them into a bounded
queue, from which the iterator serves. A consumer that stops reading stops the reader, and so the sender: nothing grows.
A second task looks now and then whether an answer is overdue, and ends the stream if so.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

import grpc
from google.protobuf import json_format
from tritonclient.grpc import service_pb2_grpc

from client import wire
from client.errors import DuplexError, from_server
from client.pacing import Pacer
from client.units import UnitResponse, UnitShape, UserUnit
from client.wire import kserve

UNANSWERED = 2  # units that a server takes ahead of its answers, unless its configuration says max_in_flight
RECEIVE_QUEUE = 32  # units; a consumer may pause for five seconds before the server feels it
POLL_SECONDS = 0.25  # how often it is looked whether an answer is overdue
# Channels to one address share a TCP connection unless told otherwise, and a stream that stalls would stall the others.
CHANNEL = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
]
_END: Any = grpc.aio.EOF  # pyright: ignore[reportAttributeAccessIssue]
CLOSE_SECONDS = 1.0  # after the last answer: how long the server may take to close the stream by itself


class DuplexClient:
    """A connection to one `duplex` model. Make it with `connect`; use it for any number of sessions."""

    def __init__(self, url: str, model: str, channel: grpc.aio.Channel, shape: UnitShape) -> None:
        self.url = url
        self.model = model
        self.shape = shape
        self.server: dict[str, Any] = {}  # name, version, extensions
        self.parameters: dict[str, str] = {}  # what the model configuration says about itself
        self._channel = channel
        self._triton = service_pb2_grpc.GRPCInferenceServiceStub(channel)

    @property
    def unanswered(self) -> int:
        """How many units of a session may be under way at once."""
        given = self.parameters.get("max_in_flight", "")
        return int(given) if given.isdecimal() and int(given) > 0 else UNANSWERED

    @classmethod
    async def connect(cls, url: str, *, model: str = "duplex", timeout: float = 10.0) -> DuplexClient:
        """Waits until the model at `url` (host:port) is ready and reads its shapes.

        Raises DuplexError: UNAVAILABLE when it is not ready in `timeout` seconds, INVALID_ARGUMENT when it is not a
        duplex model.
        """
        channel = grpc.aio.insecure_channel(url, options=CHANNEL)
        triton = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            await _until_ready(triton, url, model, timeout)
            metadata = await triton.ModelMetadata(kserve.ModelMetadataRequest(name=model), timeout=timeout)
            client = cls(url, model, channel, wire.read_shape(model, metadata.inputs))
            server = await triton.ServerMetadata(kserve.ServerMetadataRequest(), timeout=timeout)
            client.server = json_format.MessageToDict(server, preserving_proto_field_name=True)
            config = await triton.ModelConfig(kserve.ModelConfigRequest(name=model), timeout=timeout)
            client.parameters = {k: v.string_value for k, v in config.config.parameters.items()}
        except grpc.aio.AioRpcError as error:
            await channel.close()
            raise _transport_error(url, error.code().name, error.details() or "") from None
        except BaseException:
            await channel.close()
            raise
        return client

    def session(
        self,
        session_id: int | str | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        timeout: float = 10.0,
    ) -> DuplexSession:
        """A new session; enter it with `async with`.

        session_id: None takes a random one.  options: `prompt`, `seed`, `retention`, `solver_steps`; `hold_open` is
        true unless given, so that the server notices a client that vanishes.  timeout: seconds after which an
        unanswered unit is a DEADLINE_EXCEEDED error and the end of the session.
        """
        return DuplexSession(self, secrets.randbits(62) + 1 if session_id is None else session_id, options, timeout)

    async def is_ready(self) -> bool:
        """Whether the server answers and the model is ready."""
        try:
            return bool((await self._triton.ModelReady(kserve.ModelReadyRequest(name=self.model), timeout=2.0)).ready)
        except grpc.aio.AioRpcError:
            return False

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> DuplexClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class DuplexSession:
    """One conversation. Send units in order, the last with `end`; iterate to receive one response a unit.

    Iterating raises DuplexError. After one that is not `fatal` (a refused unit: send it again, mended) go on iterating.
    Leaving the `async with` block before the end cancels the stream; the server then drops the session.
    """

    def __init__(
        self, client: DuplexClient, session_id: int | str, options: Mapping[str, Any] | None, timeout: float
    ) -> None:
        self.session_id = session_id
        self.options: dict[str, Any] = {"hold_open": True, **(options or {})}
        self.sent = 0
        self.answered = 0
        self.ended = False
        self._client = client
        self._timeout = timeout
        self._room = asyncio.Semaphore(client.unanswered)
        self._responses: asyncio.Queue[UnitResponse | DuplexError | None] = asyncio.Queue(RECEIVE_QUEUE)
        self._owed: deque[float] = deque()  # send times of unanswered units, oldest first
        self._reading_since: float | None = None  # None: the reader waits for its consumer
        self._verdict: DuplexError | None = None  # why the watch has cancelled the stream ..
        self._over = False  # .. or that it did so after the last answer
        self._written = asyncio.Event()  # no unit is on its way to gRPC
        self._written.set()
        self._last_index = -1
        self._failure: DuplexError | None = None
        self._finished = False
        self._call: Any = None
        self._tasks: tuple[asyncio.Task[None], ...] = ()  # reader and watch

    async def __aenter__(self) -> DuplexSession:
        self._call = self._client._triton.ModelStreamInfer()
        reader = asyncio.create_task(self._read(), name=f"duplex-reader-{self.session_id}")
        self._tasks = reader, asyncio.create_task(self._watch(), name=f"duplex-watch-{self.session_id}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancels what is still under way. Safe to call twice."""
        self._failure = self._failure or DuplexError("CANCELLED", "the session was closed by this client")
        if self._call is not None:
            self._call.cancel()
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._room.release()
        if not self._finished:
            while not self._responses.empty():
                self._responses.get_nowait()
            self._responses.put_nowait(self._failure)  # wakes a consumer that waits in another task

    # -- sending -----------------------------------------------------------------------------------------------
    async def send(self, unit: UserUnit) -> float:
        """Hands one unit to the stream, once there is room for it, and returns the moment (time.monotonic()).

        Raises ValueError for a unit of the wrong shape, DuplexError when the session is over.
        """
        unit.check(self._client.shape)
        if self._failure is None and self.ended:
            raise DuplexError("INVALID_ARGUMENT", f"unit {unit.index}: the session has ended with the unit before it")
        await self._room.acquire()  # ends at the latest when the reader finds an answer overdue
        if self._failure is not None:
            self._room.release()  # for the next one who waits
            raise self._failure
        now = time.monotonic()
        request = wire.encode(self._client.model, unit, self.session_id, None if self.sent else self.options)
        self._owed.append(now)
        self.sent += 1
        self.ended = unit.end
        self._written.clear()
        try:
            await self._call.write(request)
            if unit.end:
                await self._call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the stream is gone: the reader knows why and tells the consumer
        finally:
            self._written.set()
        return now

    async def play(
        self, units: Iterable[UserUnit], pacer: Pacer, on_sent: Callable[[UserUnit, float], None] | None = None
    ) -> None:
        """Sends units in real time, each when it would be complete if it were spoken now.

        The next unit is made in a thread while this one waits, so that decoding never stops the event loop.
        """
        source = iter(units)
        while (unit := await asyncio.to_thread(next, source, None)) is not None:
            await pacer.wait(unit.index)
            sent = await self.send(unit)
            if on_sent is not None:
                on_sent(unit, sent)

    # -- receiving ---------------------------------------------------------------------------------------------
    def __aiter__(self) -> DuplexSession:
        return self

    async def __anext__(self) -> UnitResponse:
        if self._finished:
            raise StopAsyncIteration
        item = await self._responses.get()
        if item is None:
            self._finished = True
            raise StopAsyncIteration
        if isinstance(item, DuplexError):
            self._finished = item.fatal
            raise item
        return item

    async def _read(self) -> None:
        last: DuplexError | None = None
        try:
            while True:
                self._reading_since = time.monotonic()
                message = await self._call.read()
                received = time.monotonic()
                self._reading_since = None
                await self._written.wait()  # an answer may be quicker than the return of `send`, which comes first
                if message is _END:
                    if self._owed or not self.ended:
                        last = DuplexError(
                            "UNAVAILABLE",
                            f"{self._client.url}: the server closed the stream with {len(self._owed)} units unanswered",
                        )
                    break
                item = self._taken(message, received)
                if isinstance(item, DuplexError) and item.fatal:
                    last = item
                    break
                await self._responses.put(item)
        except grpc.aio.AioRpcError as error:
            last = _transport_error(self._client.url, error.code().name, error.details() or "")
        except DuplexError as error:
            last = error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            if not self._over:
                last = self._verdict or DuplexError("CANCELLED", "the stream was cancelled under the session")
        self._failure = last
        self._call.cancel()
        self._room.release()  # a sender that waits finds out about the failure
        await self._responses.put(last)

    async def _watch(self) -> None:
        """Ends the stream when an answer is overdue, or when the server keeps it open after the last answer."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            since, now = self._reading_since, time.monotonic()
            if since is None:  # a server is not late while this side was not reading
                continue
            oldest = max(self._owed[0], since) if self._owed else None
            if oldest is not None and now - oldest > self._timeout:
                self._verdict = DuplexError(
                    "DEADLINE_EXCEEDED", f"no answer for {self._timeout:g} s; {len(self._owed)} units are unanswered"
                )
            elif oldest is None and self.ended and now - since > CLOSE_SECONDS:
                self._over = True
            else:
                continue
            self._call.cancel()
            return

    def _taken(self, message: Any, received: float) -> UnitResponse | DuplexError:
        """A message as what the iterator gives; a DuplexError is returned if the server sent it, raised if it broke
        the contract."""
        if self._owed:
            self._owed.popleft()
            self._room.release()
        if message.error_message:
            return from_server(message.error_message, session_open=self.answered > 0)
        response = wire.decode(message.infer_response, self._client.shape, received)
        if response.unit_index <= self._last_index:
            raise DuplexError(
                "INTERNAL",
                f"unit_index: expected more than {self._last_index} from the server, got {response.unit_index}",
            )
        self._last_index = response.unit_index
        self.answered += 1
        return response


async def _until_ready(triton: service_pb2_grpc.GRPCInferenceServiceStub, url: str, model: str, timeout: float) -> None:
    end = time.monotonic() + timeout
    reason = "model not ready"
    while True:
        try:
            left = max(0.1, end - time.monotonic())
            if (await triton.ModelReady(kserve.ModelReadyRequest(name=model), timeout=left)).ready:
                return
        except grpc.aio.AioRpcError as error:
            reason = error.details() or error.code().name
        if time.monotonic() >= end:
            raise DuplexError("UNAVAILABLE", f"{url}: model {model} was not ready within {timeout:g} s ({reason})")
        await asyncio.sleep(0.2)


def _transport_error(url: str, status: str, details: str) -> DuplexError:
    """gRPC status -> DuplexError; the status name is the code."""
    return DuplexError(status, f"{url}: {details or 'the connection ended'}")
