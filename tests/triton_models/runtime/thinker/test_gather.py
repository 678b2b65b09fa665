"""The gather window: company when it costs nothing, no waiting when it does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triton_models.runtime.thinker.gather import GatherWindow

pytestmark = pytest.mark.unit
FAR = 10**12


def window(sessions: int, max_batch: int = 8) -> GatherWindow:
    gather = GatherWindow(100, max_batch, period_ns=1000, early_ns=200)
    for session in range(sessions):
        gather.open(session, 0)
    return gather


def test_waits_for_the_window_then_takes_all_most_urgent_first() -> None:
    gather = window(4)
    gather.add(0, FAR, 10)
    gather.add(1, FAR - 1, 50)
    assert gather.take(109) == []
    assert gather.wake_ns() == 110
    assert gather.take(110) == [1, 0]
    assert gather.take(500) == []
    assert gather.wake_ns() is None


def test_goes_at_once_when_nobody_else_can_come() -> None:
    gather = window(2)
    gather.add(0, FAR, 10)
    assert gather.take(10) == []
    gather.add(1, FAR, 20)
    assert gather.take(20) == [0, 1]
    gather.add(0, FAR, 700)  # session 1 sent at 20 and cannot be here again before 820: after the window
    assert gather.take(700) == [0]
    gather.add(0, FAR, 1500)
    assert gather.take(1500) == []  # now it can
    gather.close(1)
    assert gather.take(1500) == [0]


def test_goes_at_once_when_full_or_pressed() -> None:
    gather = window(9, max_batch=2)
    for session, latest in ((0, FAR), (1, FAR), (2, 5)):
        gather.add(session, latest, 10)
    assert gather.take(10) == [2, 0]
    assert gather.take(11) == []
    assert gather.take(110) == [1]
    gather.add(3, 160, 120)
    assert gather.take(159) == []
    assert gather.take(160) == [3]


def test_a_session_that_closes_takes_its_job_along() -> None:
    gather = window(3)
    gather.add(0, FAR, 0)
    gather.close(0)
    assert len(gather) == 0
    assert gather.take(1000) == []
    gather.add(1, FAR, 0)
    with pytest.raises(ValueError, match="session: 1 is waiting already"):
        gather.add(1, FAR, 1)


def test_company_that_saves_nothing_is_not_waited_for() -> None:
    alone = GatherWindow(100, 4, costs=[0.0, 8.0, 15.9, 23.8, 31.7])
    for session in range(3):
        alone.open(session, 0)
        alone.add(session, FAR - session, 10)
    assert [alone.take(10) for _ in range(3)] == [[2], [1], [0]]  # one after the other: the first is done sooner
    together = GatherWindow(100, 4, costs=[0.0, 8.0, 9.0, 10.0, 11.0])
    for session in range(4):
        together.open(session, 0)
    for session in range(4):
        together.add(session, FAR - session, 10)
        if session < 3:
            assert together.take(10) == []
    assert together.take(10) == [3, 2, 1, 0]


def test_a_silent_session_is_not_waited_for() -> None:
    """It is open and says nothing: every unit of the others waited out the window for it."""
    gather = GatherWindow(100, 4, period_ns=1000, early_ns=200)
    gather.open("silent", 0)
    gather.open("a", 0)
    gather.add("a", FAR, 900)
    assert gather.wake_ns() == 1000, "it may still come"
    assert gather.take(1000) == ["a"]
    gather.add("a", FAR, 1900)
    assert gather.wake_ns() == 1900


def test_bad_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="costs: expected those of 0 to 4 rows, got 2 figures"):
        GatherWindow(0, 4, costs=[0.0, 1.0])
    with pytest.raises(ValueError, match="max_batch: expected >= 1 row, got 0"):
        GatherWindow(0, 0)
    with pytest.raises(ValueError, match="window_ns: expected >= 0, got -1"):
        GatherWindow(-1, 1)


@given(
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 300), st.integers(0, 400)), max_size=40),
    st.integers(1, 4),
)
def test_nobody_waits_longer_than_the_window(jobs: list[tuple[int, int, int]], max_batch: int) -> None:
    """Asked whenever it says so, it lets every job go within the window, or by its latest start if that is earlier."""
    gather = window(8, max_batch)
    now, since = 0, {}

    def drain(until: int) -> None:
        nonlocal now
        while (wake := gather.wake_ns()) is not None and wake <= until:
            now = max(now, wake)
            taken = gather.take(now)
            assert 0 < len(taken) <= max_batch
            for session in taken:
                added, latest = since.pop(session)
                assert now <= max(added, min(added + 100, latest))

    for session, gap, slack in jobs:
        drain(now + gap)
        now += gap
        if session not in since:
            since[session] = (now, now + slack)
            gather.add(session, now + slack, now)
    drain(now + 1000)
    assert not since
