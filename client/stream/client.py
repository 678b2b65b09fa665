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

from . import wire
from .line import Line, opening
from .reconnect import Reconnect, Resumed
from .session import DuplexSession
from .tls import Tls
from .units import Served, UnitShape


class DuplexClient:
    """A connection to one `duplex` model. Make it with `connect`; use it for any number of sessions."""

    def __init__(self, line: Line, served: Served, server: Mapping[str, Any], parameters: Mapping[str, str]) -> None:
        """server: name, version and extensions.  parameters: what the model configuration says about itself."""
        self.served, self.server, self.parameters = served, dict(server), dict(parameters)
        self._line = line

    @property
    def url(self) -> str:
        return self.served.url

    @property
    def model(self) -> str:
        return self.served.model

    @property
    def shape(self) -> UnitShape:
        return self.served.shape

    @classmethod
    async def connect(
        cls, url: str, *, model: str = "duplex", timeout: float = 10.0, tls: Tls | None = None
    ) -> DuplexClient:
        """Waits until the model at `url` (host:port) is ready and reads its shapes.

        Raises DuplexError: UNAVAILABLE when it is not ready in `timeout` seconds, INVALID_ARGUMENT when it is not a
        duplex model.
        """
        async with opening(Line(url, tls)) as line:
            metadata, server, config = await line.facts(model, timeout)
            parameters = {k: v.string_value for k, v in config.config.parameters.items()}
            served = Served(url, model, wire.read_shape(model, metadata.inputs), tls=tls, **_limits(parameters))
        return cls(line, served, json_format.MessageToDict(server, preserving_proto_field_name=True), parameters)

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
        return DuplexSession(self.served, self._line, number, options, timeout, policy, on_resume)

    async def is_ready(self) -> bool:
        """Whether the server answers and the model is ready."""
        try:
            return await self._line.is_ready(self.model, 2.0)
        except grpc.aio.AioRpcError:
            return False

    async def close(self) -> None:
        await self._line.close()

    async def __aenter__(self) -> DuplexClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _limits(parameters: Mapping[str, str]) -> dict[str, Any]:
    """Fields of `Served` that the model configuration gives."""
    given = {name: int(value) for name, value in parameters.items() if value.isdecimal() and int(value)}
    limits = {"unanswered": given.get("max_in_flight"), "grace": given.get("grace_ms", 0) / 1000}
    return {name: value for name, value in limits.items() if value}
