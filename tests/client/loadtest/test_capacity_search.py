"""The search for the largest number of sessions, over a server that is a number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.loadtest.driver import Plan, Run
from client.loadtest.search import Probe, find, hopeless
from client.loadtest.user import UnitLog, UserLog

pytestmark = pytest.mark.unit


async def search(limit: int, most: int) -> tuple[int, list[int]]:
    async def probe(sessions: int) -> Probe:
        return Probe(sessions, sessions <= limit, 1.0, int(sessions > limit), 100.0)

    found, probes = await find(probe, most)
    return found, [p.sessions for p in probes]


@given(limit=st.integers(0, 300), most=st.integers(1, 300))
async def test_the_limit_is_found_in_few_probes(limit: int, most: int) -> None:
    found, probed = await search(limit, most)
    assert found == min(limit, most)
    assert len(probed) == len(set(probed)) <= 2 * most.bit_length()
    assert max(probed) <= most


async def test_the_order_of_probes() -> None:
    assert await search(5, 64) == (5, [1, 2, 4, 8, 6, 5])
    assert await search(9, 3) == (3, [1, 2, 3])
    assert await search(0, 8) == (0, [1])


async def test_a_hiccup_is_given_a_second_chance_and_a_refusal_is_not() -> None:
    tries: list[int] = []

    async def probe(sessions: int) -> Probe:
        tries.append(sessions)
        hiccup = sessions == 2 and tries.count(2) == 1
        return Probe(sessions, sessions <= 2 and not hiccup, 0.9 if hiccup else 1.0, int(sessions > 3), 100.0)

    found, probes = await find(probe, 8)
    assert (found, tries) == (2, [1, 2, 2, 4, 3, 3])
    assert [p.held for p in probes] == [True, False, True, False, False, False]


async def test_nothing_to_try() -> None:
    with pytest.raises(ValueError, match="most: expected >= 1 session, got 0"):
        await search(1, 0)


def test_a_probe_is_given_up_when_its_outcome_is_clear() -> None:
    plan = Plan("x", sessions=1, seconds=200 * 0.16, warm_up=0)
    user = UserLog(0, start=0.0, planned=plan.units)
    run = Run(plan, "", [user], {}, {}, {})
    give_up = hopeless(0.99)
    for index in range(3):
        assert not give_up(run), "2 of 200 may be late"
        user.units.append(UnitLog(index, due=0.0, woke=0.0, sent=0.0, received=0.3))
    assert give_up(run)
