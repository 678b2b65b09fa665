"""The gateway's one way to the model: shared, replaced without harm to its users, and not waited for in turn."""

from __future__ import annotations

import asyncio
import gc
import weakref
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from client.stream.errors import DuplexError
from client.stream.units import UnitShape
from client.web.call.call import Call
from client.web.call.call_book import BookFull, CallBook
from client.web.call.prompts import Prompts
from client.web.door.upstream import Upstream

pytestmark = pytest.mark.unit
SHAPE = UnitShape(samples=2560, height=64, width=64)


@dataclass
class Client:
    """A connection to nothing."""

    closed: bool = False
    shape: UnitShape = SHAPE
    model: str = "duplex"
    server: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)

    async def is_ready(self) -> bool:
        return not self.closed

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
def dialled(monkeypatch):
    """Connections that were made; `dialled.gate` holds the next ones back, `dialled.fails` makes them fail."""

    class Dialled(list):
        gate = asyncio.Event()
        fails = False

    made = Dialled()
    made.gate = asyncio.Event()
    made.gate.set()

    async def connect(url, *, model, timeout, tls=None):
        made.append(Client())
        await made.gate.wait()
        if made.fails:
            raise DuplexError("UNAVAILABLE", "away")
        return made[-1]

    monkeypatch.setattr("client.web.door.upstream.DuplexClient.connect", connect)
    return made


async def test_a_connection_is_closed_when_its_last_user_has_left_and_not_before(dialled):
    upstream = Upstream("x", "duplex")
    one, two = await upstream.take(), await upstream.take()
    assert one is two
    upstream.distrust()
    assert await upstream.is_ready()
    new = await upstream.take()
    assert new is not one
    assert not dialled[0].closed, "two conversations still stream on it"
    upstream.give_back(one)
    await asyncio.sleep(0)
    assert not dialled[0].closed
    upstream.give_back(two)
    await asyncio.sleep(0.01)
    assert [client.closed for client in dialled] == [True, False]
    upstream.give_back(new)
    await asyncio.sleep(0.01)
    assert not dialled[1].closed, "nobody uses it now, and the next one will"
    await upstream.close()
    assert dialled[1].closed


async def test_all_who_wait_share_one_attempt(dialled):
    upstream = Upstream("x", "duplex")
    dialled.gate.clear()
    dialled.fails = True
    waiting = [asyncio.create_task(upstream.is_ready()) for _ in range(20)]
    await asyncio.sleep(0.01)
    waiting.pop().cancel()
    dialled.gate.set()
    assert await asyncio.gather(*waiting) == [False] * 19
    assert len(dialled) == 1
    dialled.fails = False
    assert await upstream.is_ready()


async def test_an_attempt_ends(dialled, monkeypatch):
    monkeypatch.setattr("client.web.door.upstream.CONNECT_SECONDS", 0.01)
    dialled.gate.clear()
    with pytest.raises(DuplexError, match="no answer within"):
        await Upstream("x", "duplex").take()


async def test_a_conversation_goes_on_when_another_has_lost_the_server(start_fake, start_gate):
    """5.2: a health check after one call's failure used to close everybody's channel."""
    fake, _ = await start_fake()
    gate = await start_gate(fake.url)
    call = await gate.desk.new_call(live=True, limit_seconds=1.0)
    call.attach()
    call.start()
    while call.answered < 2:
        await asyncio.sleep(0.02)
    gate.desk.upstream.distrust()
    async with gate.http.get(f"{gate.url}/healthz") as response:
        assert response.status == 200
    answered = call.answered
    while call.answered < answered + 3:
        assert not call.closed
        await asyncio.sleep(0.02)


def _call(**seen: Any) -> Call:
    call = Call(Client(), live=True, limit_seconds=1.0)  # pyright: ignore[reportArgumentType]
    vars(call).update(seen)
    return call


async def test_a_waiting_or_silent_client_gives_its_place_and_a_talking_one_does_not():
    book = CallBook(2)
    talking, silent = _call(), _call(heard_at=-1e6)
    for call in (talking, silent):
        book.add(call)
        call.attach()
    book.check_room()
    assert len(book) == 2, "asking evicts nobody"
    book.add(_call())
    assert book.find(talking.key) is talking
    assert book.find(silent.key) is None
    with pytest.raises(BookFull):
        book.check_room()
    assert book.count["expired"] == 1
    await book.close()


async def test_nobody_is_evicted_for_a_server_that_is_away(dialled, start_gate):
    gate = await start_gate("x", max_calls=1)
    dialled.fails = True
    silent = _call(heard_at=-1e6)
    gate.desk.book.add(silent)
    with pytest.raises(DuplexError):
        await gate.desk.new_call(live=True, limit_seconds=1.0)
    assert gate.desk.book.find(silent.key) is silent


async def test_a_client_that_never_begins_is_sent_away(monkeypatch):
    monkeypatch.setattr("client.web.call.call_book.BEGIN_SECONDS", 0.02)
    book, call = CallBook(2), _call()
    book.add(call)
    await asyncio.sleep(0.1)
    assert (len(book), call.closed) == (0, True)
    assert call.error is not None
    assert "expected a first sound" in call.error.message


async def test_a_conversation_that_has_ended_is_kept_by_nobody():
    book, call = CallBook(2), _call()
    book.add(call)
    gone = weakref.ref(call)
    book.drop(call, "the client left")
    await book.close()
    del call
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ("", "english"),
        ("german", "german"),
        ("Be brief.", "english"),
        ("You are a helpful assistant. Answer in German.", "german"),
        ("English or German, as you like", "english"),
        ("Answer in German, as a man.", "german man"),
        ("You are a man.", "english"),
    ],
)
def test_a_prompt_that_the_model_never_saw_is_not_given_to_it(asked, chosen):
    assert Prompts.of({"prompts": '["english", "german", "english man", "german man"]'}).choose(asked) == chosen
    assert Prompts.of({}).choose(asked) == asked
    assert Prompts.of({"prompts": "{"}).choose(asked) == asked


async def test_text_that_the_server_does_not_take_is_left_out_and_the_conversation_goes_on(start_fake, start_gate):
    """F3b: it used to end the conversation."""
    fake, _ = await start_fake()
    fake.refuse = dict.fromkeys(range(9), "INVALID_ARGUMENT: text: expected at most 9 more tokens (0 wait), got 12")
    gate = await start_gate(fake.url)
    call = await gate.desk.new_call(live=True, limit_seconds=1.0)
    refused: list[DuplexError] = []

    class Dialect:
        async def on_unit(self, response, sent, epoch):
            if response.unit_index == 1:
                call.intake.add_text("too much")

        def on_refused(self, error):
            refused.append(error)

        def on_mended(self, resumed): ...
        def on_leaving(self, seconds): ...
        def on_end(self, error): ...

    call.dialect = Dialect()
    call.attach()
    call.start()
    while call.answered < 7:
        assert not call.closed, call.error
        await asyncio.sleep(0.02)
    assert [seen.index for seen in fake.seen[:7]] == list(range(7))
    assert [error.code for error in refused] == ["INVALID_ARGUMENT"]
    assert not any(seen.text for seen in fake.seen)


async def test_an_interrupt_goes_to_the_server_once(start_fake, start_gate):
    fake, _ = await start_fake(answer=lambda seen: ("speak", "", np.zeros(2560, np.float32), seen.frames))
    gate = await start_gate(fake.url)
    call = await gate.desk.new_call(live=True, limit_seconds=1.0)
    call.attach()
    call.start()
    while call.answered < 2:
        await asyncio.sleep(0.02)
    call.intake.add_text("forget it")
    call.interrupt()
    while call.answered < 6:
        await asyncio.sleep(0.02)
    given = [seen.options for seen in fake.seen if not seen.start and seen.options]
    assert given == [{"interrupt": True}]
    assert not any(seen.text for seen in fake.seen)
