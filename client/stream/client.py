"""`DuplexClient`: full-duplex sessions with a served model over one gRPC stream each.

async with await DuplexClient.connect("127.0.0.1:8001") as client:
    async with client.session(options={"seed": 7}, reconnect=True) as session:
        talking = asyncio.create_task(session.play(units, Pacer()))
        async for response in session:
            ...
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import grpc
from google.protobuf import json_format

from client.stream import wire
from client.stream.line import Line, opening
from client.stream.reconnect import GRACE_SECONDS, Reconnect, Resumed
from client.stream.session import DuplexSession
from client.stream.units import UnitShape
from client.stream.wire import kserve

UNANSWERED = 2  # units that a server takes ahead of its answers, unless its configuration says max_in_flight


class DuplexClient:
    """A connection to one `duplex` model. Make it with `connect`; use it for any number of sessions."""

    def __init__(self, line: Line, model: str, shape: UnitShape) -> None:
        self.url = line.url
        self.model = model
        self.shape = shape
        self.server: dict[str, Any] = {}  # name, version, extensions
        self.parameters: dict[str, str] = {}  # what the model configuration says about itself
        self.line = line

    @property
    def unanswered(self) -> int:
        """How many units of a session may be under way at once."""
        return self._parameter("max_in_flight") or UNANSWERED

    @property
    def grace(self) -> float:
        """Seconds for which the server keeps a session whose connection is lost."""
        return self._parameter("grace_ms") / 1000 or GRACE_SECONDS

    @classmethod
    async def connect(cls, url: str, *, model: str = "duplex", timeout: float = 10.0) -> DuplexClient:
        """Waits until the model at `url` (host:port) is ready and reads its shapes.

        Raises DuplexError: UNAVAILABLE when it is not ready in `timeout` seconds, INVALID_ARGUMENT when it is not a
        duplex model.
        """
        async with opening(Line(url)) as line:
            await line.until_ready(model, timeout)
            metadata = await line.triton.ModelMetadata(kserve.ModelMetadataRequest(name=model), timeout=timeout)
            client = cls(line, model, wire.read_shape(model, metadata.inputs))
            server = await line.triton.ServerMetadata(kserve.ServerMetadataRequest(), timeout=timeout)
            client.server = json_format.MessageToDict(server, preserving_proto_field_name=True)
            config = await line.triton.ModelConfig(kserve.ModelConfigRequest(name=model), timeout=timeout)
            client.parameters = {k: v.string_value for k, v in config.config.parameters.items()}
        return client

    def session(
        self,
        session_id: int | str | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        timeout: float = 10.0,
        reconnect: bool | Reconnect = False,
        on_resume: Callable[[Resumed], None] | None = None,
    ) -> DuplexSession:
        """A new session; enter it with `async with`.

        session_id: None takes a random one.  options: `prompt`, `seed`, `retention`, `solver_steps`; `hold_open` is
        true unless given, so that the server notices a client that vanishes.  timeout: seconds after which an
        unanswered unit is a DEADLINE_EXCEEDED error and the end of the session.
        reconnect: mend a connection that is lost in mid-session and go on (see `client.stream.reconnect`). It is not
        the default, because the server then keeps what belongs to a client that vanishes for its grace time, and
        because a measurement should fail.  on_resume: called when the session goes on.
        """
        number = secrets.randbits(62) + 1 if session_id is None else session_id
        policy = Reconnect() if reconnect is True else reconnect or None
        return DuplexSession(self, number, options, timeout, policy, on_resume)

    async def is_ready(self) -> bool:
        """Whether the server answers and the model is ready."""
        try:
            return await self.line.is_ready(self.model, 2.0)
        except grpc.aio.AioRpcError:
            return False

    async def close(self) -> None:
        await self.line.close()

    async def __aenter__(self) -> DuplexClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _parameter(self, name: str) -> int:
        """A number that the model configuration gives; 0 if it does not."""
        given = self.parameters.get(name, "")
        return int(given) if given.isdecimal() else 0


__all__ = ["DuplexClient", "DuplexSession"]
