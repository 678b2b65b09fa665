"""What of a lost connection is mended, and how it is tried."""

from __future__ import annotations

import itertools

import pytest

from client.stream.errors import DuplexError
from client.stream.reconnect import Outage, Reconnect, Resumed, resumable

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("code", "broken", "expected"),
    [
        ("UNAVAILABLE", True, True),
        ("INTERNAL", True, True),
        ("CANCELLED", True, True),
        ("DEADLINE_EXCEEDED", True, True),
        ("PERMISSION_DENIED", True, False),
        ("UNIMPLEMENTED", True, False),
        ("UNAVAILABLE", False, False),
        ("NOT_FOUND", False, False),
        ("INTERNAL", False, False),
    ],
)
def test_what_the_transport_breaks_is_mended_and_what_the_server_says_stands(code, broken, expected):
    assert resumable(DuplexError(code, "why", broken=broken)) is expected


def test_the_first_try_is_at_once_and_the_pauses_double_up_to_the_longest():
    policy = Reconnect(first=0.1, longest=1.0)
    assert list(itertools.islice(policy.pauses(lambda: 0.0), 7)) == pytest.approx([0, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
    assert list(itertools.islice(policy.pauses(lambda: 1.0), 4)) == pytest.approx([0, 0.05, 0.1, 0.2])


@pytest.mark.parametrize("name", ["budget", "first", "longest", "attempt"])
def test_times_of_no_length_are_refused(name):
    with pytest.raises(ValueError, match=rf"reconnect\.{name}: expected more than 0 seconds, got 0"):
        Reconnect(**{name: 0})


def test_the_server_bounds_the_budget():
    assert Reconnect(budget=24).end(100.0, 30.0) == 124.0
    assert Reconnect(budget=24).end(100.0, 10.0) == 108.0


class Time:
    """A clock that moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


async def _tried(policy: Reconnect, attempt) -> str:
    time = Time()
    outage = Outage(time.now, time.now + policy.budget, "reset")
    return await policy.until_back(attempt, outage, clock=time.clock, sleep=time.sleep, jitter=lambda: 0.0)


async def test_it_is_tried_until_it_works():
    limits: list[float] = []

    async def attempt(seconds: float) -> str:
        limits.append(seconds)
        if len(limits) < 4:
            raise DuplexError("UNAVAILABLE", "refused", broken=True)
        return "line"

    assert await _tried(Reconnect(budget=2.0, first=0.2, attempt=1.0), attempt) == "line"
    assert limits == pytest.approx([1.0, 1.0, 1.0, 0.6]), "no try takes longer than what is left"


async def test_it_is_given_up_at_the_end_of_the_budget_with_the_last_reason():
    tries = 0

    async def attempt(seconds: float) -> str:
        nonlocal tries
        tries += 1
        raise DuplexError("UNAVAILABLE", f"refused {tries}", broken=True)

    with pytest.raises(DuplexError) as caught:
        await _tried(Reconnect(budget=1.0, first=0.2), attempt)
    assert tries == 3
    assert str(caught.value).startswith(
        "UNAVAILABLE: the connection was lost, and not back after 1.0 s and 3 tries (refused 3)"
    )
    assert "start a new one" in caught.value.message
    assert not resumable(caught.value)


async def test_what_another_try_cannot_mend_is_raised_at_once():
    tries = 0

    async def attempt(seconds: float) -> str:
        nonlocal tries
        tries += 1
        raise DuplexError("PERMISSION_DENIED", "no", broken=True)

    with pytest.raises(DuplexError, match="PERMISSION_DENIED: no"):
        await _tried(Reconnect(), attempt)
    assert tries == 1


def test_what_was_typed_and_never_heard_is_remembered():
    outage = Outage(0.0, 1.0, "reset")
    outage.lose(7, "heard")
    outage.lose(8, "not heard")
    outage.lose(-1, "who knows")
    assert outage.lost == 3
    assert outage.unheard(8) == ["not heard"]


def test_the_news_for_the_user():
    assert str(Resumed(9, 0.84, 1, 0)) == "connection lost, resumed after 0.8 s (1 unit lost)"
    assert str(Resumed(9, 3.0, 1, 4)) == "connection lost, resumed after 3.0 s (5 units lost)"
