"""One connection to a server: a gRPC channel and the KServe calls on it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
from tritonclient.grpc import service_pb2_grpc

from client.stream.errors import DuplexError
from client.stream.wire import kserve

# Channels to one address share a TCP connection unless told otherwise, and a stream that stalls would stall the others.
CHANNEL = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
]
READY_SECONDS = 0.2  # between two questions whether a model is ready


class Line:
    """A connection of its own to `url` (host:port). It is made when the first call needs it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._channel = grpc.aio.insecure_channel(url, options=CHANNEL)
        self.triton = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def is_ready(self, model: str, timeout: float) -> bool:
        """Whether `model` is ready. Raises grpc.aio.AioRpcError where there is no answer."""
        return bool((await self.triton.ModelReady(kserve.ModelReadyRequest(name=model), timeout=timeout)).ready)

    async def until_ready(self, model: str, timeout: float) -> None:
        """Raises DuplexError UNAVAILABLE when `model` is not ready within `timeout` seconds."""
        end = time.monotonic() + timeout
        reason = "model not ready"
        while True:
            try:
                if await self.is_ready(model, max(0.1, end - time.monotonic())):
                    return
            except grpc.aio.AioRpcError as error:
                reason = error.details() or error.code().name
            if time.monotonic() >= end:
                raise DuplexError(
                    "UNAVAILABLE", f"{self.url}: model {model} was not ready within {timeout:g} s ({reason})"
                )
            await asyncio.sleep(READY_SECONDS)

    def stream(self) -> Any:
        """A new ModelStreamInfer call."""
        return self.triton.ModelStreamInfer()

    async def close(self) -> None:
        await self._channel.close()


async def dial(url: str, model: str, timeout: float) -> Line:
    """A connection that works: `model` answers on it. Raises DuplexError; it is `broken` if another try may help.

    Always a new one: what is left of a connection whose network is gone looks alive for a quarter of an hour.
    """
    async with opening(Line(url)) as line:
        if not await line.is_ready(model, timeout):
            raise DuplexError("UNAVAILABLE", f"{url}: model {model} is not ready", broken=True)
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
    """gRPC status -> DuplexError; the status name is the code."""
    return DuplexError(error.code().name, f"{url}: {error.details() or 'the connection ended'}", broken=True)
