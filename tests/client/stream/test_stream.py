"""DuplexSession against a server that behaves, and against one that does not."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest

from client.stream.client import DuplexClient
from client.stream.errors import DuplexError
from client.stream.units import UnitShape, UserUnit, quiet

pytestmark = pytest.mark.unit


async def _send_all(session, make_unit, count, **kwargs):
    for index in range(count):
        await session.send(make_unit(index, end=index == count - 1, **kwargs))


async def _collect(session):
    """All responses and the error that ended them, if any."""
    responses, error = [], None
    try:
        async for response in session:
            responses.append(response)  # noqa: PERF401 - what came before the error counts
    except DuplexError as caught:
        error = caught
    return responses, error


async def test_units_come_back_in_order_with_their_tensors(start_fake, make_unit):
    fake, _ = await start_fake()
    async with await DuplexClient.connect(fake.url) as client, client.session(options={"seed": 7}) as session:
        await _send_all(session, make_unit, 6)
        responses, error = await _collect(session)
    assert error is None
    assert [r.unit_index for r in responses] == list(range(6))
    for index, response in enumerate(responses):
        np.testing.assert_array_equal(response.pcm, make_unit(index).pcm)
        np.testing.assert_array_equal(response.frames, make_unit(index).frames)
        assert response.info["ms"]["total"] == 53.0
    assert [(s.start, s.end) for s in fake.seen] == [(True, False)] + [(False, False)] * 4 + [(False, True)]
    assert fake.seen[0].options == {"hold_open": True, "seed": 7}
    assert all(s.options is None for s in fake.seen[1:])


async def test_what_was_heard_is_optional(start_fake, make_unit):
    fake, _ = await start_fake(heard={1: " fünf"})
    async with await DuplexClient.connect(fake.url) as client, client.session() as session:
        await _send_all(session, make_unit, 3)
        responses, error = await _collect(session)
    assert (error, [r.heard for r in responses]) == (None, ["", " fünf", ""])


async def test_session_ids_are_random_numbers_unless_given(start_fake, make_unit):
    fake, _ = await start_fake()
    async with await DuplexClient.connect(fake.url) as client:
        for name in (None, None, "ada", 42):
            async with client.session(name) as session:
                await session.send(make_unit(0, text="héllo", end=True))
                await _collect(session)
    first, second, third, fourth = (s.session for s in fake.seen)
    assert isinstance(first, int)
    assert first != second
    assert (third, fourth) == ("ada", 42)
    assert {s.text for s in fake.seen} == {"héllo"}


async def test_one_session_may_be_a_single_unit(start_fake, make_unit):
    fake, _ = await start_fake()
    async with await DuplexClient.connect(fake.url) as client, client.session() as session:
        await session.send(make_unit(0, end=True))
        responses, error = await _collect(session)
        assert (len(responses), error) == (1, None)
        with pytest.raises(DuplexError, match="INVALID_ARGUMENT: unit 1: the session has ended"):
            await session.send(make_unit(1))
    assert (fake.seen[0].start, fake.seen[0].end) == (True, True)


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        (UserUnit(0, np.zeros(2400, np.int16), np.zeros((4, 64, 64, 3), np.uint8)), r"pcm: .*2560 float32.*2400 int16"),
        (UserUnit(0, np.zeros(2560, np.float32), np.zeros((3, 64, 64, 3), np.uint8)), r"frames: .*got uint8 \[3,"),
        (UserUnit(0, np.zeros(2560, np.float32), np.zeros((4, 64, 64, 3), np.float32)), r"frames: .*got float32"),
    ],
)
async def test_a_misshapen_unit_never_leaves_and_does_no_harm(start_fake, make_unit, unit, message):
    fake, _ = await start_fake()
    async with await DuplexClient.connect(fake.url) as client, client.session() as session:
        with pytest.raises(ValueError, match=message):
            await session.send(unit)
        await session.send(make_unit(0, end=True))
        responses, error = await _collect(session)
    assert (len(responses), error, len(fake.seen)) == (1, None, 1)


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"])
async def test_a_refused_unit_can_be_sent_again(start_fake, make_unit, code):
    fake, _ = await start_fake(errors={2: f"{code}: text: expected at most 100 bytes, got 999"})
    async with await DuplexClient.connect(fake.url) as client, client.session() as session:
        for index in range(3):
            await session.send(make_unit(index))
        first, error = await _collect(session)
        assert error is not None
        assert (error.code, error.fatal) == (code, False)
        assert error.message == "text: expected at most 100 bytes, got 999"
        fake.errors.clear()
        await session.send(make_unit(2))
        await session.send(make_unit(3, end=True))
        rest, error = await _collect(session)
    assert error is None
    assert [r.unit_index for r in first + rest] == [0, 1, 2, 3]


async def test_no_more_units_under_way_than_the_server_takes(start_fake, make_unit):
    fake, _ = await start_fake(delay=lambda unit: 0.02, parameters={"max_in_flight": "3"})
    async with await DuplexClient.connect(fake.url) as client, client.session() as session:
        assert client.served.unanswered == 3
        most = 0

        async def send():
            nonlocal most
            for index in range(12):
                await session.send(make_unit(index, end=index == 11))
                most = max(most, session.sent - session.course.answered)

        sending = asyncio.create_task(send())
        responses, error = await _collect(session)
        await sending
    assert (len(responses), error, most) == (12, None, 3)


async def test_a_sender_that_waits_for_room_hears_of_the_failure(start_fake, make_unit):
    fake, server = await start_fake(silent_from=0)
    async with await DuplexClient.connect(fake.url) as client:
        async with client.session(timeout=0.2) as session:
            for index in range(2):
                await session.send(make_unit(index))
            with pytest.raises(DuplexError, match=r"DEADLINE_EXCEEDED: no answer for 0.2 s; 2 units"):
                await session.send(make_unit(2))
        async with client.session() as session:
            for index in range(2):
                await session.send(make_unit(index))
            blocked = asyncio.create_task(session.send(make_unit(2)))
            await asyncio.sleep(0.05)
            await server.stop(0)
            with pytest.raises(DuplexError, match=r"UNAVAILABLE|CANCELLED"):
                await asyncio.wait_for(blocked, 5)


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "ALREADY_EXISTS", "INVALID_ARGUMENT", "UNAVAILABLE"])
async def test_a_refused_start_ends_the_session(start_fake, make_unit, code):
    fake, _ = await start_fake(errors={0: f"{code}: sessions: expected at most 2, got a third"})
    async with await DuplexClient.connect(fake.url) as client, client.session() as session:
        await session.send(make_unit(0))
        responses, error = await _collect(session)
        assert not responses
        assert error is not None
        assert (error.code, error.fatal, error.message) == (code, True, "sessions: expected at most 2, got a third")
        with pytest.raises(DuplexError, match=code):
            await session.send(make_unit(1))
        assert await _collect(session) == ([], None)


async def test_an_error_without_a_code_is_internal(start_fake, make_unit):
    fake, _ = await start_fake(errors={1: "[request id: 1] the backend made no sense"})
    async with await DuplexClient.connect(fake.url) as client, client.session() as session:
        await _send_all(session, make_unit, 2)
        responses, error = await _collect(session)
    assert len(responses) == 1
    assert error is not None
    assert (error.code, error.fatal) == ("INTERNAL", True)
    assert "made no sense" in error.message


async def test_an_id_that_was_never_started_is_not_found(start_fake, make_unit):
    text = (
        "in ensemble, inference request for sequence 7 to model 'duplex' must specify the START flag on the first one"
    )
    fake, _ = await start_fake(errors={1: text})
    async with await DuplexClient.connect(fake.url) as client, client.session(7) as session:
        await _send_all(session, make_unit, 2)
        _, error = await _collect(session)
    assert error is not None
    assert (error.code, error.fatal) == ("NOT_FOUND", True)


async def test_no_answer_comes_before_the_return_of_its_send(start_fake, make_unit):
    fake, _ = await start_fake()
    sent: list[int] = []
    async with await DuplexClient.connect(fake.url) as client, client.session() as session:

        async def talk():
            for index in range(100):
                await session.send(make_unit(index, end=index == 99))
                sent.append(index)

        talking = asyncio.create_task(talk())
        async for response in session:
            assert response.unit_index in sent
        await talking


async def test_server_that_goes_away_in_mid_session(start_fake, make_unit):
    fake, server = await start_fake(silent_from=2)
    async with await DuplexClient.connect(fake.url) as client, client.session() as session:
        for index in range(3):
            await session.send(make_unit(index))
        got = [(await anext(session)).unit_index for _ in range(2)]
        await server.stop(0)
        responses, error = await _collect(session)
        assert got == [0, 1]
        assert responses == []
        assert error is not None
        assert error.code in ("UNAVAILABLE", "CANCELLED")
        assert fake.url in error.message
        with pytest.raises(DuplexError):
            await session.send(make_unit(3))
        assert not await client.is_ready()


async def test_stream_closed_with_units_unanswered(start_fake, make_unit):
    fake, _ = await start_fake(leave_at=1)
    async with await DuplexClient.connect(fake.url) as client, client.session() as session:
        await _send_all(session, make_unit, 3)
        responses, error = await _collect(session)
    assert [r.unit_index for r in responses] == [0]
    assert error is not None
    assert error.code == "UNAVAILABLE"
    assert "2 units unanswered" in error.message


async def test_server_that_stops_answering_is_a_deadline_error(start_fake, make_unit):
    fake, _ = await start_fake(silent_from=1)
    async with await DuplexClient.connect(fake.url) as client, client.session(timeout=0.3) as session:
        await session.send(make_unit(0))
        await session.send(make_unit(1))
        responses, error = await _collect(session)
    assert [r.unit_index for r in responses] == [0]
    assert error is not None
    assert (error.code, error.fatal) == ("DEADLINE_EXCEEDED", True)
    assert "1 units are unanswered" in error.message


async def test_a_write_that_never_ends_is_a_deadline_error_too(start_fake):
    """The network is gone in the middle of a unit that is larger than gRPC's window, while an answer waits for it."""
    shape = UnitShape(samples=2560, height=1024, width=1024)
    fake, _ = await start_fake(shape=shape, delay=lambda unit: 0.3, stuck_after=0)
    async with await DuplexClient.connect(fake.url) as client, client.session(timeout=2.0) as session:
        await session.send(quiet(0, shape))
        blocked = asyncio.create_task(session.send(quiet(1, shape)))
        responses, error = await asyncio.wait_for(_collect(session), 20)
        assert error is not None
        assert (len(responses), error.code) == (1, "DEADLINE_EXCEEDED")
        await asyncio.wait([blocked], timeout=5)


async def test_half_an_emoji_is_replaced_and_costs_no_unit(start_fake, make_unit):
    fake, _ = await start_fake()
    client = await DuplexClient.connect(fake.url)
    async with client, client.session(options={"prompt": "a\ud83d"}) as session:
        await session.send(make_unit(0, text="b\ude00", end=True))
        responses, error = await _collect(session)
    assert (len(responses), error) == (1, None)
    assert (fake.seen[0].text, fake.seen[0].options["prompt"]) == ("b?", "a?")


async def test_a_user_who_pauses_is_not_a_timeout(start_fake, make_unit):
    fake, _ = await start_fake()
    async with await DuplexClient.connect(fake.url) as client, client.session(timeout=0.8) as session:
        await session.send(make_unit(0))
        assert (await anext(session)).unit_index == 0
        await asyncio.sleep(1.5)
        await session.send(make_unit(1, end=True))
        responses, error = await _collect(session)
    assert ([r.unit_index for r in responses], error) == ([1], None)


async def test_a_consumer_that_pauses_is_not_a_timeout(start_fake, make_unit):
    fake, _ = await start_fake()
    async with await DuplexClient.connect(fake.url) as client, client.session(timeout=0.8) as session:
        sending = asyncio.create_task(_send_all(session, make_unit, 60))
        await asyncio.sleep(1.5)
        responses, error = await _collect(session)
        await sending
    assert ([r.unit_index for r in responses], error) == (list(range(60)), None)


async def test_slow_server_delays_the_answers_and_loses_none(start_fake, make_unit):
    fake, _ = await start_fake(delay=lambda unit: 0.05)
    async with await DuplexClient.connect(fake.url) as client, client.session() as session:
        sending = asyncio.create_task(_send_all(session, make_unit, 16))
        responses, error = await _collect(session)
        await sending
    assert error is None
    assert [r.unit_index for r in responses] == list(range(16))


async def test_indices_that_go_back_are_refused(start_fake, make_unit):
    fake, _ = await start_fake(swap=(2, 1))
    async with await DuplexClient.connect(fake.url) as client, client.session() as session:
        await _send_all(session, make_unit, 4)
        responses, error = await _collect(session)
    assert [r.unit_index for r in responses] == [0, 1]
    assert error is not None
    assert error.message == "unit_index: expected more than 1 from the server, got 1"


async def test_server_that_never_closes_the_stream_does_not_hold_the_client(start_fake, make_unit):
    fake, _ = await start_fake(stay_open=True)
    async with await DuplexClient.connect(fake.url) as client, client.session() as session:
        await _send_all(session, make_unit, 2)
        responses, error = await _collect(session)
    assert (len(responses), error) == (2, None)
    await asyncio.wait_for(fake.cancelled.wait(), 5)


async def test_closing_wakes_a_consumer_in_another_task(start_fake, make_unit):
    fake, _ = await start_fake(silent_from=0)
    async with await DuplexClient.connect(fake.url) as client, client.session() as session:
        await session.send(make_unit(0))
        waiting = asyncio.create_task(_collect(session))
        await asyncio.sleep(0.05)
        await session.close()
        responses, error = await asyncio.wait_for(waiting, 5)
    assert responses == []
    assert error is not None
    assert error.code == "CANCELLED"


async def test_a_response_of_the_wrong_shape_is_named(start_fake, make_unit):
    fake, _ = await start_fake(answer=lambda seen: ("listen", "", seen.pcm[:100], seen.frames))
    async with await DuplexClient.connect(fake.url) as client, client.session() as session:
        await session.send(make_unit(0, end=True))
        _, error = await _collect(session)
    assert error is not None
    assert error.message == "pcm: expected float32 [2560] from the server, got float32 [100]"


async def test_the_same_client_holds_several_sessions_at_once(start_fake, make_unit):
    fake, _ = await start_fake(delay=lambda unit: 0.01)
    async with await DuplexClient.connect(fake.url) as client:

        async def talk(name: int):
            async with client.session(name) as session:
                sending = asyncio.create_task(_send_all(session, make_unit, 5))
                responses, error = await _collect(session)
                await sending
                return [r.unit_index for r in responses], error

        results = await asyncio.gather(*(talk(n) for n in (1, 2, 3)))
    assert results == [(list(range(5)), None)] * 3
    assert json.dumps(sorted({s.session for s in fake.seen})) == "[1, 2, 3]"
