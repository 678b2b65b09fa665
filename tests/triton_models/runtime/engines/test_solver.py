"""Units in host memory: every row takes its own Euler steps, whatever shares its calls and whatever becomes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from triton_models.runtime.engines.solver import HostSolver, SolverFull
from triton_models.runtime.messages import HistoryView

pytestmark = pytest.mark.unit

Bench = Any  # the class of conftest.py
SCHEDULE = [(1.0, -0.4), (0.6, -0.35), (0.25, -0.25)]  # tau, length of the step


class Units:
    """A solver over the fake engine and units that differ in noise and history; unit n shows page n of value n."""

    def __init__(self, bench: Bench, slots: int = 4) -> None:
        self.engine, self.pool = bench.fake("perform"), bench.pool
        for page in range(1, 10):
            self.pool.k[:, page, 0] = page
        self.solver = HostSolver(self.engine.run, self.pool, bench.config.backbone.head_dim, slots)

    def put(self, number: int) -> int:
        rng = np.random.default_rng(number)
        x = [rng.standard_normal(shape, dtype=np.float32) for shape in ((1, 2), (2, 3), (3, 2), (3, 2))]
        view = HistoryView(np.array([number], dtype=np.int64), np.array([[0, 1]], dtype=np.int64))
        return self.solver.put(x[0], x[1], x[2], x[3], view)

    def alone(self, number: int, steps: int = len(SCHEDULE)) -> list[np.ndarray]:
        """The latents of a unit that shared no call, one row at a time as the formula has it."""
        slot = self.put(number)
        for tau, step in SCHEDULE[:steps]:
            assert list(self.solver.tick([slot], [tau], [step])) == [True]
        return self.end(slot)

    def end(self, slot: int) -> list[np.ndarray]:
        x = [array.copy() for array in self.solver.take(slot)]
        self.solver.drop(slot)
        return x


@pytest.fixture
def units(bench: Bench) -> Any:
    made = Units(bench)
    yield made
    made.pool.k[:] = 0


def assert_same(got: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for x, y in zip(got, expected, strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_step_adds_its_length_times_the_velocity(units: Units) -> None:
    slot = units.put(3)
    for tau, step in SCHEDULE:
        before = [x.copy() for x in units.solver.take(slot)]
        velocities: list[np.ndarray] = []
        units.engine.spoil = lambda _, out, to=velocities: to.extend(v[0].copy() for v in out.values())
        assert list(units.solver.tick([slot], [tau], [step])) == [True]
        expected = [x + np.float32(step) * v for x, v in zip(before, velocities, strict=True)]
        assert_same(list(units.solver.take(slot)), expected)


def test_rows_join_leave_and_swap_without_a_bit_of_difference(units: Units) -> None:
    expected = {number: units.alone(number) for number in (1, 2, 3)}
    slots = {1: units.put(1), 2: units.put(2)}
    done: dict[int, int] = {1: 0, 2: 0, 3: 0}

    def tick(*numbers: int) -> None:
        taus, steps = zip(*(SCHEDULE[done[number]] for number in numbers), strict=True)
        assert all(units.solver.tick([slots[number] for number in numbers], taus, steps))
        for number in numbers:
            done[number] += 1

    tick(1, 2)
    slots[3] = units.put(3)
    tick(3, 1, 2)
    tick(2)
    assert_same(units.end(slots.pop(2)), expected[2])
    tick(1, 3)
    assert_same(units.end(slots.pop(1)), expected[1])
    tick(3)
    assert_same(units.end(slots.pop(3)), expected[3])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_row_that_is_not_finite_stays_so_and_alone(units: Units) -> None:
    expected = units.alone(2)
    lost, fine = units.put(1), units.put(2)

    def spoil(_: object, out: dict[str, np.ndarray]) -> None:
        out["velocity_audio"][0, 1, 2] = np.inf

    units.engine.spoil = spoil
    units.solver.tick([lost, fine], [1.0, 1.0], [-0.4, -0.4])
    units.engine.spoil = None
    for tau, step in SCHEDULE[1:]:
        units.solver.tick([lost, fine], [tau] * 2, [step] * 2)
    assert not np.isfinite(units.end(lost)[1]).all()
    assert_same(units.end(fine), expected)


def test_a_call_that_fails_leaves_its_units_as_they_were(units: Units) -> None:
    expected = units.alone(1), units.alone(2)
    slots = [units.put(1), units.put(2)]
    for tau, step in SCHEDULE:
        units.engine.crash = RuntimeError("device lost")
        with pytest.raises(RuntimeError, match="device lost"):
            units.solver.tick(slots, [tau] * 2, [step] * 2)
        units.engine.crash = None
        units.solver.tick(slots, [tau] * 2, [step] * 2)
    for slot, latents in zip(slots, expected, strict=True):
        assert_same(units.end(slot), latents)


def test_latents_that_were_taken_do_not_keep_their_batch_alive(units: Units) -> None:
    slots = [units.put(1), units.put(2)]
    units.solver.tick(slots, [1.0, 1.0], [-1.0, -1.0])
    assert all(x.base is None for x in units.solver.take(slots[0]))


def test_slots_are_given_again_and_run_out_with_a_message(units: Units) -> None:
    slots = [units.put(number) for number in (1, 2, 3, 4)]
    with pytest.raises(SolverFull, match="all 4 slots of the performer are taken"):
        units.put(5)
    units.solver.drop(slots[2])
    expected = units.alone(6)
    again = units.put(6)
    assert again == slots[2]
    assert list(units.solver.tick([again], *zip(SCHEDULE[0], strict=True))) == [True]
    for tau, step in SCHEDULE[1:]:
        units.solver.tick([again], [tau], [step])
    assert_same(units.end(again), expected)
