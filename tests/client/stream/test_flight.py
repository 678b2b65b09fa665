"""Units under way: how many at once, in which order they are answered, and what happens to them in an outage."""

from __future__ import annotations

import asyncio

import pytest

from client.stream.flight import Flight, Owed

pytestmark = pytest.mark.unit


async def _send(flight: Flight, index: int, *, alone: bool = False) -> None:
    await flight.turn()
    flight.begin(Owed(index, index, float(index), ""), alone=alone)
    flight.written()


async def _waits(task: asyncio.Task[None]) -> bool:
    await asyncio.sleep(0.01)
    return not task.done()


async def test_no_more_than_the_limit_is_under_way_and_the_oldest_is_answered_first():
    flight = Flight(2)
    assert flight.oldest is None
    assert flight.land() is None
    await _send(flight, 3)
    await _send(flight, 4)
    third = asyncio.create_task(_send(flight, 5))
    assert await _waits(third)
    assert (len(flight), flight.oldest) == (2, 3.0)
    landed = flight.land()
    assert landed is not None
    assert landed.index == 3
    await third
    assert [owed.index for owed in flight.crash()] == [4, 5]
    assert len(flight) == 0


async def test_nothing_is_sent_while_the_gate_is_closed_and_one_alone_closes_it():
    flight = Flight(2)
    flight.close_gate()
    first = asyncio.create_task(_send(flight, 0, alone=True))
    second = asyncio.create_task(_send(flight, 1))
    assert await _waits(first)
    flight.open_gate()
    await first
    assert await _waits(second), "it waits for the answer to the one that went alone"
    flight.land()
    flight.open_gate()
    await second


async def test_a_sender_that_is_cancelled_or_turns_round_leaves_its_place_to_the_next():
    flight = Flight(1)
    flight.close_gate()
    waiting = asyncio.create_task(flight.turn())
    assert await _waits(waiting)
    waiting.cancel()
    await asyncio.wait([waiting])
    flight.open_gate()
    await asyncio.wait_for(flight.turn(), 5)
    flight.give_back()
    await asyncio.wait_for(_send(flight, 0), 5)


async def test_the_end_wakes_whoever_waits():
    flight = Flight(1)
    await _send(flight, 0)
    flight.close_gate()
    waiting = asyncio.create_task(flight.turn())
    assert await _waits(waiting)
    flight.end()
    await asyncio.wait_for(waiting, 5)


async def test_an_answer_waits_for_the_return_of_its_sender():
    flight = Flight(1)
    await flight.turn()
    flight.begin(Owed(0, 0, 0.0, ""))
    settling = asyncio.create_task(flight.settle())
    assert await _waits(settling)
    flight.written()
    await asyncio.wait_for(settling, 5)
