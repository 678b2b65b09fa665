"""The real-time clock of units, on a clock that this test turns."""

from __future__ import annotations

import pytest

from client.stream.pacing import Pacer

pytestmark = pytest.mark.unit


class Clock:
    """A clock whose sleeps take exactly as long as asked, unless `oversleep` says otherwise."""

    def __init__(self, now: float = 100.0, oversleep: float = 0.0) -> None:
        self.now = now
        self.oversleep = oversleep
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds + self.oversleep


async def test_unit_k_is_due_when_its_last_sample_would_have_been_taken():
    clock = Clock()
    pacer = Pacer(clock, clock.sleep)
    for unit in range(5):
        assert await pacer.wait(unit) == pytest.approx(0.0, abs=1e-9)
        assert clock.now == pytest.approx(100.0 + 0.16 * (unit + 1))
    assert pacer.due(4) == pytest.approx(100.8)
    assert pacer.deadline(4) == pytest.approx(100.96)


async def test_a_late_unit_does_not_move_the_next_one():
    clock = Clock()
    pacer = Pacer(clock, clock.sleep)
    await pacer.wait(0)
    clock.now += 0.5  # the sender was blocked
    assert await pacer.wait(1) == pytest.approx(0.34)
    assert await pacer.wait(2) == pytest.approx(0.18)
    assert await pacer.wait(3) == pytest.approx(0.02)
    assert await pacer.wait(4) == pytest.approx(0.0, abs=1e-9)
    assert clock.now == pytest.approx(pacer.due(4))


async def test_an_early_wake_up_sleeps_again():
    clock = Clock(oversleep=-0.01)

    async def wakes_early_once(seconds: float) -> None:
        await clock.sleep(seconds)
        clock.oversleep = 0.0

    pacer = Pacer(clock, wakes_early_once)
    assert await pacer.wait(0) >= 0.0
    assert len(clock.slept) >= 2


async def test_oversleeping_does_not_add_up():
    clock = Clock(oversleep=0.003)
    pacer = Pacer(clock, clock.sleep)
    lateness = [await pacer.wait(unit) for unit in range(200)]
    assert max(lateness) == pytest.approx(0.003)
    assert clock.now - 100.0 == pytest.approx(200 * 0.16 + 0.003)


def test_before_the_first_wait_there_is_no_due_time():
    with pytest.raises(RuntimeError, match="has not started"):
        Pacer().due(0)
