"""One connection to a server: a gRPC channel and the KServe calls on it."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
from tritonclient.grpc import service_pb2_grpc

from .errors import DuplexError, said_by_triton
from .tls import Tls
from .units import Served
from .wire import kserve

# Channels to one address share a TCP connection unless told otherwise, and a stream that stalls would stall the others.
CHANNEL = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
]
# What gRPC calls a target: a host and a port, or a scheme of its own.
_ADDRESS = re.compile(r"(?:\[(?P<six>[^\]]+)\]|(?P<host>[^\s:/\[\]]+)):(?P<port>\d{1,5})|(?:unix|dns|ipv[46]|xds):\S+")
HOME_HEADER = "wan-streamer-home"
READY_SECONDS = 0.2  # between two questions whether a model is ready


def host_of(url: str) -> str:
    """Empty for what is no name and port, but means something to gRPC. Raises DuplexError (INVALID_ARGUMENT)."""
    found = _ADDRESS.fullmatch(url)
    if found is None or int(found["port"] or 0) > 65535:
        raise DuplexError("INVALID_ARGUMENT", f"url: expected HOST:PORT, got {url!r}")
    return found["six"] or found["host"] or ""


class Line:
    """A connection of its own to `url` (host:port). It is made when the first call needs it."""

    def __init__(self, url: str, tls: Tls | None = None) -> None:
        """Raises DuplexError (INVALID_ARGUMENT) for what is no address, or no file of TLS."""
        self.url = url
        # A proxy that this machine reaches the world through cannot reach this machine's own ports.
        proxy = int(not _loopback(host_of(url)))
        options = [*CHANNEL, ("grpc.enable_http_proxy", proxy)]
        if tls is None:
            self._channel = grpc.aio.insecure_channel(url, options=options)
        else:
            self._channel = grpc.aio.secure_channel(url, tls.credentials(), options=options)
        self.triton = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def is_ready(self, model: str, timeout: float) -> bool:
        """Whether `model` is ready. Raises grpc.aio.AioRpcError where there is no answer."""
        return bool((await self.triton.ModelReady(kserve.ModelReadyRequest(name=model), timeout=timeout)).ready)

    async def facts(self, model: str, timeout: float) -> tuple[Any, Any, Any]:
        """What the server says of `model`, once that is ready: its tensors, the server itself, its configuration.

        Each question may come to another server of a fleet, and one that goes away just then knows no model any more:
        all are asked again. Raises DuplexError UNAVAILABLE after `timeout` seconds.
        """
        end = time.monotonic() + timeout
        reason = "model not ready"
        while (left := end - time.monotonic()) > 0:
            try:
                if await self.is_ready(model, max(0.1, left)):
                    return (
                        await self.triton.ModelMetadata(kserve.ModelMetadataRequest(name=model), timeout=timeout),
                        await self.triton.ServerMetadata(kserve.ServerMetadataRequest(), timeout=timeout),
                        await self.triton.ModelConfig(kserve.ModelConfigRequest(name=model), timeout=timeout),
                    )
            except grpc.aio.AioRpcError as error:
                reason = error.details() or error.code().name
            await asyncio.sleep(READY_SECONDS)
        raise DuplexError("UNAVAILABLE", f"{self.url}: model {model} was not ready within {timeout:g} s ({reason})")

    def stream(self, home: str = "") -> Any:
        """A new ModelStreamInfer call. home: the token of the session that it goes on with, for a balancer."""
        return self.triton.ModelStreamInfer(metadata=((HOME_HEADER, home),) if home else None)

    async def close(self) -> None:
        await self._channel.close()


async def dial(served: Served, timeout: float) -> Line:
    """A connection that works: the model answers on it. Raises DuplexError; it is `broken` if another try may help.

    Always a new one: what is left of a connection whose network is gone looks alive for a quarter of an hour.
    """
    async with opening(Line(served.url, served.tls)) as line:
        if not await line.is_ready(served.model, timeout):
            raise DuplexError("UNAVAILABLE", f"{served.url}: model {served.model} is not ready", broken=True)
    return line


@contextlib.asynccontextmanager
async def opening(line: Line) -> AsyncIterator[Line]:
    """The first calls on a line: it is closed unless all of them succeed. Raises DuplexError in place of gRPC's."""
    try:
        yield line
    except grpc.aio.AioRpcError as error:
        await line.close()
        raise transport_error(line.url, error) from None
    except BaseException:
        await line.close()
        raise


def transport_error(url: str, error: grpc.aio.AioRpcError) -> DuplexError:
    """gRPC status -> DuplexError; the status name is the code. A balancer whose server is gone cuts the stream."""
    code, said = error.code().name, error.details() or "the connection ended"
    code = said_by_triton(said) or code
    if ("RST_STREAM" in said or "Stream removed" in said) and code in ("INTERNAL", "CANCELLED", "UNKNOWN"):
        code, said = "UNAVAILABLE", f"the server behind it is gone ({said})"
    return DuplexError(code, f"{url}: {said}", broken=True)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
