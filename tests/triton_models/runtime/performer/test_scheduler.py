"""The step scheduler: order, batch size, degradation, fairness, no starvation, determinism."""

from collections import Counter
from collections.abc import Hashable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triton_models.runtime.budget.costs import CostTable
from triton_models.runtime.performer.scheduler import NS_PER_MS, PATIENCE_NS, Row, StepScheduler

pytestmark = pytest.mark.unit
MS = NS_PER_MS


def scheduler(fixed: float = 6.0, per_row: float = 1.5, max_batch: int = 8, degrade: bool = False) -> StepScheduler:
    return StepScheduler(CostTable.linear({"perform": (fixed, per_row)}), max_batch, margin=1.0, degrade=degrade)


def names(rows: list[Row]) -> list[Hashable]:
    return [row.job for row in rows]


def test_rows_walk_through_their_steps_and_leave() -> None:
    steps = scheduler()
    steps.join("a", 900 * MS, 3, 0)
    seen = []
    for tick in range(3):
        rows = steps.next_tick(tick)
        seen.append((rows[0].step, rows[0].last))
        done = steps.completed(rows, tick)
    assert seen == [(0, False), (1, False), (2, True)]
    assert done == ["a"]
    assert steps.next_tick(9) == []


def test_sessions_join_between_steps_each_at_its_own() -> None:
    steps = scheduler()
    steps.join("a", 900 * MS, 4, 0)
    steps.completed(steps.next_tick(0), 0)
    rows = steps.next_tick(1)
    steps.join("b", 901 * MS, 4, 1)  # while the tick runs
    steps.completed(rows, 2)
    assert [(row.job, row.step) for row in steps.next_tick(2)] == [("a", 2), ("b", 0)]


def test_earliest_deadline_first_whatever_the_order_of_joining() -> None:
    steps = scheduler(max_batch=3)
    for job, deadline in (("c", 930), ("a", 910), ("d", 940), ("b", 920)):
        steps.join(job, deadline * MS, 4, 0)
    assert names(steps.next_tick(0)) == ["a", "b", "c"]
    steps.join("now", 905 * MS, 4, 0)
    assert names(steps.next_tick(0)) == ["now", "a", "b"]


def test_a_batch_grows_only_as_far_as_the_most_urgent_row_bears() -> None:
    steps = scheduler(fixed=1.0, per_row=1.0)
    steps.join("urgent", 4 * MS, 1, 0)
    for job in range(5):
        steps.join(job, (100 + job) * MS, 1, 0)
    rows = steps.next_tick(0)
    assert names(rows) == ["urgent", 0, 1]  # 1 + 3 rows = 4 ms


def test_demand_sets_a_floor_under_the_batch() -> None:
    """The urgent row alone could be on time, but batches of one would fall behind this demand for ever."""
    steps = scheduler(fixed=9.0, per_row=0.5, max_batch=64)
    for unit in range(4):
        for job in range(40):
            steps.join(("early", unit, job), (unit * 160 + 100) * MS, 4, unit * 160 * MS)
        for job in range(40):
            steps.leave(("early", unit, job))
    now = 640 * MS
    steps.join("urgent", now + 38 * MS, 4, now)
    for job in range(40):
        steps.join(job, now + 150 * MS, 4, now)
    assert len(steps.next_tick(now)) > 15


def test_rows_run_one_after_the_other_where_a_batch_saves_nothing() -> None:
    steps = scheduler(fixed=0.1, per_row=8.0)
    for job in range(3):
        steps.join(job, (500 + job) * MS, 2, 0)
    served = []
    for tick in range(6):
        rows = steps.next_tick(tick * 8 * MS)
        served += names(rows)
        steps.completed(rows, (tick + 1) * 8 * MS)
    assert served == [0, 0, 1, 1, 2, 2]


def test_without_known_costs_all_rows_go_together() -> None:
    steps = scheduler(fixed=0.0, per_row=0.0)
    for job in range(3):
        steps.join(job, job - 1, 2, 0)
    assert sorted(map(str, names(steps.next_tick(0)))) == ["0", "1", "2"]


def test_what_cannot_be_on_time_waits_behind_what_can() -> None:
    steps = scheduler(fixed=1.0, per_row=1.0, max_batch=2)
    steps.join("lost", 1 * MS, 4, 0)
    steps.join("a", 20 * MS, 4, 0)
    steps.join("b", 21 * MS, 4, 0)
    assert names(steps.next_tick(0)) == ["a", "b"]
    late = 1 * MS + PATIENCE_NS + 1
    assert names(steps.next_tick(late))[0] == "lost"  # but not for ever


def test_degradation_skips_steps_only_when_there_is_no_time() -> None:
    steps = scheduler(fixed=9.0, per_row=1.0, degrade=True)
    steps.join("tight", 25 * MS, 4, 0)  # room for two evaluations of 10 ms
    first = steps.next_tick(0)
    assert first == [Row("tight", 0, 4, False)]
    assert steps.completed(first, 10 * MS) == []
    second = steps.next_tick(10 * MS)
    assert second == [Row("tight", 1, 4, True)]
    assert second[0].last
    assert steps.completed(second, 20 * MS) == ["tight"]
    assert steps.skipped == 2
    steps.join("roomy", 90 * MS, 4, 20 * MS)
    assert not steps.next_tick(20 * MS)[0].jump


def test_without_degradation_all_steps_are_done_late() -> None:
    steps = scheduler()
    steps.join("late", 0, 4, 10 * MS)
    assert [steps.completed(rows := steps.next_tick(50 * MS), 50 * MS) for _ in range(4)][-1] == ["late"]
    assert rows[0].step == 3
    assert steps.skipped == 0


def test_a_job_may_leave_in_the_middle_of_a_tick_and_come_again() -> None:
    steps = scheduler()
    steps.join("a", 900 * MS, 1, 0)
    steps.join("b", 900 * MS, 2, 0)
    rows = steps.next_tick(0)
    assert steps.leave("a")
    assert not steps.leave("a")
    assert steps.completed(rows, 1) == []
    rows = steps.next_tick(1)
    assert (names(rows), rows[0].step) == (["b"], 1)
    steps.leave("b")
    steps.join("b", 900 * MS, 2, 1)  # under the same name, while the tick of its predecessor runs
    assert steps.completed(rows, 2) == []
    assert steps.next_tick(2)[0].step == 0
    assert len(steps) == 1


@pytest.mark.parametrize("deadline", [-10_000, -1, 5, 10_000])
def test_a_job_alone_is_the_next_tick_on_time_or_late(deadline: int) -> None:
    steps = scheduler(fixed=8.0, per_row=0.5, max_batch=64)
    for number in range(300):  # a demand that asks for large batches
        steps.join(number, 0, 4, 0)
        steps.leave(number)
    steps.join("a", deadline * MS, 2, 0)
    assert steps.next_tick(0) == [Row("a", 0, 2, False)]


def test_misuse_is_named() -> None:
    steps = scheduler()
    steps.join("a", 1, 1, 0)
    with pytest.raises(ValueError, match="job: 'a' has joined already"):
        steps.join("a", 1, 1, 0)
    with pytest.raises(ValueError, match="steps: expected >= 1, got 0"):
        steps.join("b", 1, 0, 0)
    with pytest.raises(ValueError, match="max_batch: expected >= 1 row, got 0"):
        scheduler(max_batch=0)


def test_equal_deadlines_are_served_fairly() -> None:
    """Eight sessions with one deadline and room for two: over many units everyone is as often first as the others."""
    steps = scheduler(max_batch=2)
    first: Counter[Hashable] = Counter()
    for unit in range(800):
        now = unit * 160 * MS
        for job in range(8):
            steps.join(job, now + 900 * MS, 1, now)
        rows = steps.next_tick(now)
        first.update(names(rows))
        for job in range(8):
            steps.leave(job)
    assert all(160 <= first[job] <= 240 for job in range(8))


jobs = st.lists(st.tuples(st.integers(-200, 400), st.integers(1, 6), st.integers(0, 40)), min_size=1, max_size=60)
machines = st.tuples(st.floats(0.0, 10.0), st.floats(0.1, 8.0), st.integers(1, 8))


@given(jobs, machines, st.booleans())
def test_every_job_finishes_and_ticks_stay_in_order(
    arrivals: list[tuple[int, int, int]], machine: tuple[float, float, int], degrade: bool
) -> None:
    """Nobody starves, at any load: with an endless supply of urgent rows, late ones get through as well."""
    fixed, per_row, max_batch = machine
    steps = scheduler(fixed, per_row, max_batch, degrade)
    now, done, counted, latest_join = 0, set(), Counter(), 0
    pending = list(enumerate(arrivals))
    ticks = 0
    while pending or len(steps):
        while pending and (not len(steps) or pending[0][1][2] <= now // MS):
            number, (deadline, count, gap) = pending.pop(0)
            latest_join = now
            steps.join(number, now + deadline * MS, count, now)
            if gap:
                break
        rows = steps.next_tick(now)
        assert 0 < len(rows) <= max_batch
        assert len(set(names(rows))) == len(rows)
        counted.update(names(rows))
        now += round((fixed + per_row * len(rows)) * MS)
        done.update(steps.completed(rows, now))
        ticks += 1
        assert ticks <= sum(count for _, count, _ in arrivals)
    assert latest_join <= now
    assert done == set(range(len(arrivals)))
    for number, (_, count, _) in enumerate(arrivals):
        assert counted[number] == count or (degrade and 1 <= counted[number] < count)


def test_a_late_row_gets_through_an_endless_stream_of_urgent_ones() -> None:
    steps = scheduler(fixed=1.0, per_row=1.0, max_batch=1)
    steps.join("late", 0, 2, 0)
    now, number = 0, 0
    while "late" in steps._by_job:
        if len(steps) < 3:
            number += 1
            steps.join(number, now + 50 * MS, 1, now)
        rows = steps.next_tick(now)
        now += 2 * MS
        steps.completed(rows, now)
        assert now <= PATIENCE_NS + 10 * MS


@given(jobs, machines)
def test_the_same_calls_give_the_same_ticks(
    arrivals: list[tuple[int, int, int]], machine: tuple[float, float, int]
) -> None:
    fixed, per_row, max_batch = machine
    runs = []
    for _ in range(2):
        steps, now, log = scheduler(fixed, per_row, max_batch, True), 0, []
        for number, (deadline, count, gap) in enumerate(arrivals):
            steps.join(number, now + deadline * MS, count, now)
            rows = steps.next_tick(now)
            log.append(rows)
            now += gap * MS
            steps.completed(rows, now)
        runs.append(log)
    assert runs[0] == runs[1]
