"""What a session makes of a lost connection."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from client.stream.client import DuplexClient
from client.stream.errors import DuplexError
from client.stream.pacing import Pacer
from client.stream.reconnect import Reconnect, Resumed
from client.stream.units import UserUnit

pytestmark = pytest.mark.unit

QUICK = Reconnect(budget=0.6, first=0.02, longest=0.1)
PATIENT = Reconnect(budget=20, first=0.02, longest=0.1)


async def _ask_all(session, make_unit, count, texts=()):
    """Sends each unit when the one before it is answered, whatever with."""
    responses = []
    for index in range(count):
        await session.send(make_unit(index, text=dict(texts).get(index, ""), end=index == count - 1))
        responses.append(await asyncio.wait_for(anext(session), 10))
    assert [r async for r in session] == []
    return responses


async def _drain(session):
    async for _ in session:
        pass


@pytest.mark.parametrize("heard", [True, False])
async def test_a_session_goes_on_after_its_stream_was_closed(start_fake, make_unit, heard):
    fake, _ = await start_fake(**{"leave_at" if heard else "deaf_at": 3})
    news: list[Resumed] = []
    async with await DuplexClient.connect(fake.url) as client:
        session = client.session("ada", {"seed": 7}, reconnect=QUICK, on_resume=news.append)
        async with session:
            responses = await _ask_all(session, make_unit, 7, {3: "seven", 5: "eight"}.items())
    assert [r.unit_index for r in responses] == list(range(7)), "the caller's numbers stay as they are"
    assert [r.unit_index for r in responses if r.lost] == [3]
    assert [s.index for s in fake.seen] == list(range(7 if heard else 6)), "the server's clock has no gap either"
    starts = [s for s in fake.seen if s.start]
    assert [s.options for s in starts] == [
        {"hold_open": True, "seed": 7, "resume": True},
        {"resume": True, "hold_open": True},
    ]
    typed = [s.text for s in fake.seen if s.text]
    assert typed == (["seven", "eight"] if heard else ["seven eight"]), "nothing that was typed is lost or said twice"
    for response in responses:
        if not response.lost:
            np.testing.assert_array_equal(response.pcm, make_unit(response.unit_index).pcm)
    assert (session.course.resumed, session.course.lost, session.course.skipped, session.course.answered) == (
        1,
        1,
        0,
        6,
    )
    assert [(n.unit, n.lost, n.skipped) for n in news] == [(4, 1, 0)]
    assert not session.reconnecting


async def test_without_being_asked_to_a_session_mends_nothing(start_fake, make_unit):
    fake, _ = await start_fake(leave_at=1)
    async with await DuplexClient.connect(fake.url) as client, client.session() as session:
        await session.send(make_unit(0))
        await anext(session)
        await session.send(make_unit(1))
        with pytest.raises(DuplexError, match="the server closed the stream with 1 units unanswered"):
            await anext(session)
    assert "resume" not in fake.seen[0].options


async def test_a_session_that_the_server_does_not_resume_says_why_and_what_to_do(start_fake, make_unit):
    gone = "NOT_FOUND: sequence_id: 'ada' cannot be resumed (no such session); start at unit 0"
    fake, _ = await start_fake(leave_at=1, resume_errors=[gone])
    async with await DuplexClient.connect(fake.url) as client, client.session("ada", reconnect=QUICK) as session:
        with pytest.raises(DuplexError) as caught:
            await _ask_all(session, make_unit, 5)
        assert (caught.value.code, caught.value.fatal) == ("NOT_FOUND", True)
        assert "the connection was lost, and the session cannot be resumed: " in caught.value.message
        assert "(no such session)" in caught.value.message
        assert caught.value.message.endswith("start a new one")


async def test_units_of_the_old_stream_that_are_under_way_delay_the_resumption_by_a_unit(start_fake, make_unit):
    busy = "RESOURCE_EXHAUSTED: unit_index: 2 units of session 'ada' are unanswered"
    fake, _ = await start_fake(leave_at=1, resume_errors=[busy])
    async with await DuplexClient.connect(fake.url) as client, client.session("ada", reconnect=QUICK) as session:
        responses = await _ask_all(session, make_unit, 6, {2: "seven"}.items())
    assert [r.unit_index for r in responses if r.lost] == [1, 2]
    assert [s.index for s in fake.seen] == list(range(5))
    assert [s.text for s in fake.seen if s.text] == ["seven"]
    assert (session.course.resumed, session.course.lost) == (1, 2)


@pytest.mark.parametrize("code", ["UNAVAILABLE", "ABORTED", "INTERNAL"])
async def test_what_the_server_ends_is_not_resumed(start_fake, make_unit, code):
    fake, _ = await start_fake(errors={2: f"{code}: session 'ada' has ended: the server is shutting down"})
    async with await DuplexClient.connect(fake.url) as client, client.session("ada", reconnect=QUICK) as session:
        with pytest.raises(DuplexError, match=f"{code}: session 'ada' has ended: the server is shutting down"):
            await _ask_all(session, make_unit, 5)
        assert session.course.resumed == 0
    assert sum(s.start for s in fake.seen) == 1


async def test_nothing_is_resumed_before_the_first_answer_nor_after_the_last_unit(start_fake, make_unit):
    """A session of which nothing was heard is asked for again under another name, and not for ever."""
    for leave_at, starts in ((0, 3), (2, 1)):
        fake, _ = await start_fake(leave_at=leave_at)
        async with await DuplexClient.connect(fake.url) as client, client.session(reconnect=PATIENT) as session:
            with pytest.raises(DuplexError, match="closed the stream with 1 units unanswered"):
                await _ask_all(session, make_unit, 3 if starts == 1 else 9)
        assert sum(s.start for s in fake.seen) == len({s.session for s in fake.seen}) == starts


FULL, AWAY = "RESOURCE_EXHAUSTED: sessions: no room; retry after 0.01 s", "UNAVAILABLE: sessions: going away"
UNLOADED = "Request for unknown model: 'duplex' has no available versions"  # Triton's own, of a server that ends
DEAD = "Failed to process the request(s) for model 'duplex_0', message: Stub process 'duplex_0' is not healthy."


@pytest.mark.parametrize(
    ("errors", "policy", "answered"),
    [
        ([FULL], QUICK, True),
        ([AWAY, FULL], QUICK, True),
        ([UNLOADED, DEAD], QUICK, True),
        ([FULL] * 3, QUICK, False),
        ([FULL], None, False),
        (["INVALID_ARGUMENT: options.seed: no"], QUICK, False),
    ],
)
async def test_a_refused_start_is_asked_for_again_a_few_times(start_fake, make_unit, errors, policy, answered):
    fake, _ = await start_fake(start_errors=list(errors))
    news: list[Resumed] = []
    client = await DuplexClient.connect(fake.url)
    async with client, client.session("ada", {"seed": 7}, reconnect=policy or False, on_resume=news.append) as session:
        if not answered:
            with pytest.raises(DuplexError, match=errors[-1].partition(":")[0]):
                await _ask_all(session, make_unit, 6)
            assert fake.seen == []
            return
        responses = await _ask_all(session, make_unit, 6, {0: "hello"}.items())
    lost = len(errors)
    assert [r.unit_index for r in responses if r.lost] == list(range(lost))
    assert [s.index for s in fake.seen] == list(range(6 - lost))
    assert fake.seen[0].options == {"hold_open": True, "seed": 7, "resume": True}
    assert fake.seen[0].text == "hello"
    assert {s.session for s in fake.seen} == {"ada"}
    assert news == [], "nothing was interrupted"


async def test_starts_without_a_hint_are_further_and_further_apart(start_fake, make_unit, monkeypatch):
    """Servers that go away say so at once: all tries would be over before the balancer has heard of it."""
    pauses = []

    def told(self, jitter=None):
        for pause in (0.0, 0.01, 0.02):
            pauses.append(pause)
            yield pause

    monkeypatch.setattr(Reconnect, "pauses", told)
    fake, _ = await start_fake(start_errors=[AWAY] * 3)
    policy = Reconnect(starts=4)
    async with await DuplexClient.connect(fake.url) as client, client.session("ada", reconnect=policy) as session:
        await _ask_all(session, make_unit, 6)
    assert pauses == [0.0, 0.01, 0.02]


def test_when_to_ask_again_is_read_off_the_message():
    assert DuplexError("RESOURCE_EXHAUSTED", "sessions: full; retry after 1.5 s").retry_after == 1.5
    assert DuplexError("RESOURCE_EXHAUSTED", "sessions: full").retry_after is None


@pytest.mark.parametrize("how", ["ended", "dead", "forgotten", "moved"])
async def test_a_session_that_is_lost_begins_anew_and_says_so(start_fake, make_unit, how):
    said = {"ended": "UNAVAILABLE: session 'ada' has ended: the server is shutting down", "dead": DEAD}
    once = {2: said[how]} if how in said else {}
    errors = ["NOT_FOUND: sequence_id: cannot be resumed (no such session); start at unit 0"]
    cut = {"leave_at": 2, "resume_errors": errors} if how == "forgotten" else {}
    fake, _ = await start_fake(once=once, **cut)
    news: list[Resumed] = []
    policy = Reconnect(budget=2.0, first=0.02, longest=0.1, anew=True)
    client = await DuplexClient.connect(fake.url)
    async with client, client.session("ada", {"seed": 7}, reconnect=policy, on_resume=news.append) as session:
        responses = []
        for index in range(7):
            if how == "moved" and index == 2:
                await session.move()
            if index == 3:
                fake.leave_at = None
            await session.send(make_unit(index, end=index == 6))
            responses.append(await asyncio.wait_for(anext(session), 10))
        assert [r async for r in session] == []
    lost = {"ended": [2], "dead": [2], "forgotten": [2, 3], "moved": []}[how]
    assert [r.unit_index for r in responses] == list(range(7))
    assert [r.unit_index for r in responses if r.lost] == lost
    first, second = (
        [s.index for s in fake.seen if (s.session == "ada") is old and s.index != -1] for old in (True, False)
    )
    assert second == list(range(len(second))), "another session, with its own clock"
    assert len(first) + len(second) >= 6
    starts = [s.options for s in fake.seen if s.start and s.options and s.options.get("seed")]
    assert starts == [{"hold_open": True, "seed": 7, "resume": True}] * 2
    [resumed] = news
    assert resumed.anew
    assert "does not remember what was said before" in str(resumed)
    assert not session.reconnecting


async def test_a_session_shows_where_it_is_at_home_when_it_comes_back(start_fake, make_unit):
    fake, _ = await start_fake(leave_at=2, home="token")
    async with await DuplexClient.connect(fake.url) as client, client.session("ada", reconnect=QUICK) as session:
        await _ask_all(session, make_unit, 5)
    assert fake.homes == ["token"], "a header on the second stream"
    assert fake.seen[-2].options == {"resume": True, "hold_open": True, "home": "token"} or [
        s.options for s in fake.seen if s.start
    ][-1] == {"resume": True, "hold_open": True, "home": "token"}


async def test_a_server_that_stays_away_is_an_error_for_sender_and_consumer(start_fake, make_unit):
    fake, server = await start_fake()
    async with await DuplexClient.connect(fake.url) as client, client.session(reconnect=QUICK) as session:
        await session.send(make_unit(0))
        await anext(session)
        await server.stop(0)
        blocked = asyncio.create_task(session.send(make_unit(1)))
        with pytest.raises(DuplexError, match=r"UNAVAILABLE: the connection was lost, and not back after .* tries"):
            await asyncio.wait_for(_drain(session), 10)
        await asyncio.wait([blocked], timeout=5)
        with pytest.raises(DuplexError, match="UNAVAILABLE: the connection was lost"):
            await session.send(make_unit(2))
        assert not session.reconnecting


async def test_a_server_that_never_answers_again_is_given_up(start_fake, make_unit):
    """Its port answers, so that each new stream begins well: the budget runs on all the same."""
    fake, _ = await start_fake(silent_from=1)
    client = await DuplexClient.connect(fake.url)
    async with client, client.session(reconnect=replace(QUICK, budget=1.0), timeout=0.3) as session:
        with pytest.raises(DuplexError, match=r"UNAVAILABLE: the connection was lost, and not back .*no answer for"):
            await asyncio.wait_for(_ask_all(session, make_unit, 50), 15)
        assert session.course.resumed == 0
        assert session.course.lost >= 1


async def test_closing_in_the_middle_of_an_outage(start_fake, make_unit):
    fake, server = await start_fake()
    before = asyncio.all_tasks()
    client = await DuplexClient.connect(fake.url)
    async with client, client.session(reconnect=Reconnect(budget=20)) as session:
        await session.send(make_unit(0))
        await anext(session)
        await server.stop(0)
        waiting = asyncio.create_task(anext(session))
        while not session.reconnecting:
            await asyncio.sleep(0.01)
        blocked = asyncio.create_task(session.send(make_unit(1)))
        await asyncio.sleep(0.05)
        await asyncio.wait_for(session.close(), 5)
        with pytest.raises(DuplexError, match="CANCELLED: the session was closed by this client while the connection"):
            await asyncio.wait_for(waiting, 5)
        with pytest.raises(DuplexError, match="CANCELLED"):
            await asyncio.wait_for(blocked, 5)
    await asyncio.sleep(0.05)
    assert [t for t in asyncio.all_tasks() - before if "duplex-" in t.get_name()] == []


async def test_who_leaves_early_tells_a_server_that_would_wait_for_him(start_fake, make_unit):
    fake, _ = await start_fake()
    async with await DuplexClient.connect(fake.url) as client:
        async with client.session(reconnect=True) as session:
            await session.send(make_unit(0))
            await anext(session)
        assert [(s.index, s.end) for s in fake.seen] == [(0, False), (1, True)]
        async with client.session() as session:
            await session.send(make_unit(0))
            await anext(session)
    assert not fake.seen[-1].end


async def test_options_that_forbid_it_are_refused(start_fake):
    fake, _ = await start_fake()
    async with await DuplexClient.connect(fake.url) as client:
        with pytest.raises(ValueError, match=r"options\.resume: expected true with reconnect, got False"):
            client.session(options={"resume": False}, reconnect=True)


async def test_the_grace_time_is_the_servers(start_fake):
    fake, _ = await start_fake(parameters={"grace_ms": "12000"})
    async with await DuplexClient.connect(fake.url) as client:
        assert client.served.grace == 12.0
    fake.parameters.clear()
    async with await DuplexClient.connect(fake.url) as client:
        assert client.served.grace == 30.0


async def test_real_time_goes_on_during_an_outage(start_fake, make_unit):
    """What falls into it is left out, but for what was typed; the last unit is sent however late it is."""
    fake, _ = await start_fake(leave_at=2)
    sent: list[int] = []

    def on_sent(unit: UserUnit, at: float) -> None:
        sent.append(unit.index)
        if unit.index == 2:
            fake.ready = False
            asyncio.get_running_loop().call_later(0.6, setattr, fake, "ready", True)

    units = [make_unit(index, text=f"t{index}", end=index == 11) for index in range(12)]
    client = await DuplexClient.connect(fake.url)
    async with client, client.session(reconnect=Reconnect(first=0.02, longest=0.05)) as session:
        playing = asyncio.create_task(session.play(units, Pacer(), on_sent))
        responses = [r async for r in session]
        await playing
    assert [r.unit_index for r in responses] == sent
    lost = [r.unit_index for r in responses if r.lost]
    assert lost == list(range(2, 2 + len(lost))), "one, or more where this process itself stood still"
    assert session.course.skipped == 12 - len(sent) >= 1
    before = 2 + len(lost)
    assert sent == [*range(before), *range(before + session.course.skipped, 12)]
    assert [s.index for s in fake.seen] == list(range(len(sent)))
    assert " ".join(s.text for s in fake.seen) == " ".join(f"t{i}" for i in range(12))
