"""A connection that is cut in mid-conversation, between the real client and a real server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from client.stream.client import DuplexClient
from client.stream.errors import DuplexError
from client.stream.pacing import Pacer
from client.stream.reconnect import Resumed
from client.stream.units import UnitResponse, UnitShape, UserUnit

pytestmark = pytest.mark.server

PLAYED = 18
CUT_AT, BACK_AFTER = 5, 0.8  # unit, seconds
OPTIONS = {"seed": 5, "prompt": "seven"}  # after which it hears something in many units


class Proxy:
    """TCP from a port of its own to a server, until it is cut: connections are reset, and further ones refused."""

    def __init__(self, target: str) -> None:
        self._host, port = target.rsplit(":", 1)
        self._port = int(port)
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.port = 0
        self.connections = 0

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def connect(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        while self._open:
            self._open.pop().transport.abort()
        for task in list(self._tasks):
            task.cancel()
            await task

    def freeze(self) -> None:
        """Nothing passes any more on what is open now, and nobody is told: a network that is out of reach."""
        self._flowing.clear()
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task, flowing = asyncio.current_task(), self._flowing
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
            self._open |= {writer, far_writer}
            await asyncio.gather(_copy(reader, far_writer, flowing), _copy(far_reader, writer, flowing))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter, flowing: asyncio.Event) -> None:
    while data := await source.read(65536):
        await flowing.wait()
        sink.write(data)
        await sink.drain()
    sink.close()


@pytest.fixture
async def proxy(server: Any) -> AsyncIterator[Proxy]:
    proxy = Proxy(server.info["grpc"])
    await proxy.connect()
    yield proxy
    await proxy.cut()


def user_unit(shape: UnitShape, index: int, **kwargs: Any) -> UserUnit:
    rng = np.random.default_rng(index)
    pcm = rng.uniform(-0.5, 0.5, shape.samples).astype(np.float32)
    return UserUnit(index, pcm, rng.integers(0, 256, shape.frames, np.uint8), **kwargs)


def units(shape: UnitShape, count: int) -> Iterator[UserUnit]:
    for index in range(count):
        yield user_unit(shape, index, end=index == count - 1)


async def same_without_outage(server: Any, cut: list[UnitResponse], unheard: set[int]) -> None:
    """The units that the server heard, in a session that is not cut, give the same answers to the last bit: nothing
    that it knew was lost, and nothing came to it twice."""
    heard = [response for response in cut if response.unit_index not in unheard]
    client = await DuplexClient.connect(server.info["grpc"])
    async with client, client.session("uncut", OPTIONS) as session:
        for number, expected in enumerate(heard):
            unit = user_unit(client.shape, expected.unit_index, end=number == len(heard) - 1)
            await session.send(replace(unit, index=number))
            got = await anext(session)
            if not expected.lost:
                np.testing.assert_array_equal(got.pcm, expected.pcm)
                assert (got.state, got.text, got.heard) == (expected.state, expected.text, expected.heard)
    assert any(response.heard for response in heard[CUT_AT + 1 :]), "and what it heard is told as before"


async def test_a_conversation_goes_on_in_real_time(server: Any, proxy: Proxy) -> None:
    news: list[Resumed] = []
    sent: list[int] = []
    responses: list[UnitResponse] = []

    async def outage() -> None:
        await proxy.cut()
        await asyncio.sleep(BACK_AFTER)
        await proxy.connect()

    async with await DuplexClient.connect(proxy.url) as client:
        async with client.session("talk", OPTIONS, reconnect=True, on_resume=news.append) as session:
            playing = asyncio.create_task(
                session.play(units(client.shape, PLAYED), Pacer(), lambda unit, at: sent.append(unit.index))
            )
            cut: list[asyncio.Task[None]] = []
            async for response in session:
                responses.append(response)
                if response.unit_index == CUT_AT:
                    cut.append(asyncio.create_task(outage()))
            await playing
            await cut[0]
        assert [r.unit_index for r in responses] == sent, "one response for each unit sent, in order"
        resumed, before = news[0].unit, [index for index in sent if index < news[0].unit]
        assert sent[len(before) :] == list(range(resumed, PLAYED))
        assert before == list(range(len(before)))
        assert session.course.skipped == news[0].skipped == resumed - len(before) >= 2
        assert (session.course.resumed, len(news), proxy.connections > 1) == (1, 1, True)
        assert BACK_AFTER < news[0].seconds < 20
        answered = [r for r in responses if not r.lost]
        assert len(answered) == session.course.answered == len(sent) - session.course.lost
        epochs = {r.unit_index < resumed: r.info["epoch"] for r in answered}
        assert epochs[True] < epochs[False], "output of the old stream can never come after the new one's"
        if session.course.lost == 0:  # nothing was under way when it was cut, which a loaded machine may spoil
            await same_without_outage(server, responses, set())


async def test_a_unit_that_is_under_way_is_lost_and_reported(server: Any, proxy: Proxy) -> None:
    """What is frozen in the proxy comes to nobody; the clock goes on without a gap, and what was typed arrives."""
    news: list[Resumed] = []
    async with await DuplexClient.connect(proxy.url) as client:
        shape = client.shape
        async with client.session("talk", OPTIONS, reconnect=True, on_resume=news.append, timeout=4.0) as session:
            responses = []
            for index in range(8):
                if index == CUT_AT:
                    proxy.freeze()
                await session.send(user_unit(shape, index, end=index == 7))
                responses.append(await anext(session))
            assert [r async for r in session] == []
        assert [r.unit_index for r in responses if r.lost] == [CUT_AT]
        assert [r.unit_index for r in responses] == list(range(8))
        blank = responses[CUT_AT]
        assert (blank.text, np.abs(blank.pcm).max()) == ("", 0)
        np.testing.assert_array_equal(blank.frames[0], responses[CUT_AT - 1].frames[-1])
        assert (session.course.resumed, session.course.lost, session.course.skipped, session.course.answered) == (
            1,
            1,
            0,
            7,
        )
        assert str(news[0]).endswith("s (1 unit lost)")
        await same_without_outage(server, responses, {CUT_AT})


async def test_a_connection_that_stays_away_is_an_error_in_time(start_server: Any) -> None:
    server = start_server(constants={"GRACE_SECONDS": 1.5})
    proxy = Proxy(server.info["grpc"])
    await proxy.connect()
    async with await DuplexClient.connect(proxy.url) as client, client.session(reconnect=True) as session:
        assert client.served.grace == 1.5
        await session.send(user_unit(client.shape, 0))
        await anext(session)
        begin = time.monotonic()
        await proxy.cut()
        with pytest.raises(
            DuplexError, match=r"UNAVAILABLE: the connection was lost, and not back after .*refused"
        ) as e:
            await asyncio.wait_for(anext(session), 10)
        assert e.value.fatal
        assert "start a new one" in e.value.message
        assert time.monotonic() - begin < 20, "the server's own grace time bounds it, not the budget of 24 s"
        with pytest.raises(DuplexError, match="UNAVAILABLE"):
            await session.send(user_unit(client.shape, 1))
    await asyncio.to_thread(server.wait, server.free_again, 10, "the session of a client that never came back")


async def test_who_leaves_early_says_so(server: Any) -> None:
    """A session that can be resumed is kept for half a minute after a loss, but not after a goodbye."""
    async with await DuplexClient.connect(server.info["grpc"]) as client:
        async with client.session(reconnect=True) as session:
            await session.send(user_unit(client.shape, 0))
            await anext(session)
        await asyncio.to_thread(server.wait, server.free_again, 5, "no session and no page in use")
