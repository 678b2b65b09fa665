"""What a session leaves behind at its end: no stream, no task, no connection."""

from __future__ import annotations

import asyncio
import contextlib

import psutil
import pytest

from client.stream.client import DuplexClient
from client.stream.errors import DuplexError

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("cause", ["server", "network", "start"])
async def test_an_error_that_is_kept_keeps_no_connection(start_fake, make_unit, cause):
    """Its traceback refers to the session, which used to hold its last call, and gRPC the connection with that."""
    errors = {"server": {1: "INTERNAL: broken"}, "start": {0: "RESOURCE_EXHAUSTED: full"}}.get(cause, {})
    fake, _ = await start_fake(errors=errors)

    async def talk():
        async with await DuplexClient.connect(fake.url) as client, client.session() as session:
            for index in range(2):
                await session.send(make_unit(index))
            async for _ in session:
                if cause == "network":
                    session._call.cancel()

    with pytest.raises(DuplexError) as kept:
        await talk()
    port = int(fake.url.rpartition(":")[2])
    while any(c.raddr and c.raddr.port == port for c in psutil.Process().net_connections("tcp")):
        await asyncio.sleep(0.02)
    assert kept.value.__traceback__ is not None


async def test_leaving_early_cancels_the_stream(start_fake, make_unit):
    fake, _ = await start_fake()
    async with await DuplexClient.connect(fake.url) as client:
        async with client.session() as session:
            await session.send(make_unit(0))
            assert (await anext(session)).unit_index == 0
        await asyncio.wait_for(fake.cancelled.wait(), 5)


async def test_cancelled_consumer_leaves_no_task_behind(start_fake, make_unit):
    fake, _ = await start_fake(silent_from=0)
    before = asyncio.all_tasks()

    async def talk():
        async with await DuplexClient.connect(fake.url) as client, client.session() as session:
            await session.send(make_unit(0))
            await anext(session)

    task = asyncio.create_task(talk())
    while not fake.seen:
        await asyncio.sleep(0.01)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await asyncio.wait_for(fake.cancelled.wait(), 5)
    await asyncio.sleep(0.05)
    left = [t for t in asyncio.all_tasks() - before if "duplex-reader" in t.get_name()]
    assert left == []
