"""The simulation: exact where it can be computed by hand, and what it shows about the policies."""

from dataclasses import replace

import pytest

from engine_builder.presets import preset
from triton_models.planner.policies import Policy, one_at_a_time, request_level, step_level
from triton_models.planner.simulate import AdmissionGate, Simulation, capacity, simulate
from triton_models.planner.workload import Workload, gpu_like
from triton_models.runtime.budget.admission import Admission, Budget
from triton_models.runtime.budget.costs import Cost, CostTable
from triton_models.runtime.kv.retention import Window

pytestmark = pytest.mark.unit
COSTS = gpu_like()
EXACT = Workload(sessions=1, seconds=4, jitter=0, noise=0, overhead=0, slots=(2, 2), warmup_seconds=0)
POLICIES = [step_level(), request_level(), one_at_a_time()]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
@pytest.mark.parametrize("devices", [1, 2])
def test_a_lonely_session_takes_the_sum_of_its_calls(policy: Policy, devices: int) -> None:
    report = Simulation(replace(EXACT, devices=devices), COSTS, policy).run()
    each = {"perceive": 1, "think": 1, "slot": 2, "perform": 4, "render": 1}
    wanted = sum(count * COSTS.ms(step, 1) for step, count in each.items())
    assert report.latencies == pytest.approx([wanted] * 24)  # nobody else can come: no waiting in the gather window
    assert report.on_time == 1.0
    assert sum(report.busy) == pytest.approx(24 * wanted / 4000, rel=0.05)  # the last unit ends after the run


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
@pytest.mark.parametrize("devices", [1, 2])
def test_every_unit_is_answered_even_far_beyond_capacity(policy: Policy, devices: int) -> None:
    load = Workload(sessions=12, seconds=3, warmup_seconds=0, devices=devices)
    report = Simulation(load, COSTS, policy).run()
    assert 12 * 17 <= report.units <= 12 * 18
    assert report.shortened == 0
    assert all(0 < busy <= 1 for busy in report.busy)


def test_same_seed_same_result() -> None:
    load = Workload(sessions=9, seconds=5, session_seconds=2.0, seed=7)
    first, second = (Simulation(load, COSTS, step_level()).run() for _ in range(2))
    assert first == second
    assert Simulation(replace(load, seed=8), COSTS, step_level()).run().latencies != first.latencies


def test_policies_meet_the_same_arrivals() -> None:
    load = Workload(sessions=4, seconds=5, session_seconds=2.0)
    reports = [Simulation(load, COSTS, policy).run() for policy in POLICIES]
    assert len({(report.admitted, report.units) for report in reports}) == 1


def test_late_units_get_fewer_steps_and_are_on_time_again() -> None:
    """A third more sessions than are on time at full quality."""
    load = Workload(sessions=17, seconds=10, deadline=100)
    full = Simulation(load, COSTS, step_level()).run()
    shortened = Simulation(load, COSTS, step_level(degrade=True)).run()
    assert full.on_time < 0.9
    assert shortened.on_time > 0.97
    assert 0 < shortened.shortened < shortened.units
    easy = Simulation(replace(load, sessions=8), COSTS, step_level(degrade=True)).run()
    assert easy.shortened == 0


def test_step_level_batching_sustains_more_sessions() -> None:
    """The reference of the benchmark in short; `make bench` runs it at length and over other costs and deadlines."""
    load = Workload(seconds=8, deadline=100)
    ours, requests, single = (capacity(load, COSTS, policy, seeds=3) for policy in POLICIES)
    assert ours >= 1.4 * requests
    assert requests > single > 0


@pytest.mark.parametrize(("fixed", "per_row"), [(0.2, 8.0), (1.0, 6.8), (3.0, 3.0)])
@pytest.mark.parametrize("devices", [1, 2])
def test_never_fewer_sessions_than_one_at_a_time(fixed: float, per_row: float, devices: int) -> None:
    """Also where batching gains little or nothing, because a row costs as much in a batch as alone."""
    load = Workload(seconds=8, devices=devices)
    costs = gpu_like(fixed, per_row)
    ours, single = (capacity(load, costs, policy, seeds=3) for policy in (step_level(), one_at_a_time()))
    assert ours >= single > 0


@pytest.fixture(scope="module")
def sustained() -> int:
    return capacity(Workload(seconds=10, deadline=100), COSTS, step_level(), seeds=5)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_twice_the_capacity_offered_leaves_the_admitted_on_time(sustained: int, seed: int) -> None:
    """Sessions come and go for half a minute; whoever finds no room is refused and told why."""
    steps = Workload().solver_steps
    budget = Budget(sustained, steps, pages=100_000, page_tokens=16, deadline=100)
    admission = Admission(preset("tiny"), COSTS, budget)
    load = Workload(sessions=2 * sustained, seconds=30, session_seconds=10.0, deadline=100, seed=seed)
    report = Simulation(load, COSTS, step_level(), AdmissionGate(admission, Window(4, 50), steps)).run()
    assert report.on_time >= 0.99
    assert report.admitted > 2 * budget.shares  # over the whole time, as others left
    assert set(report.refused) == {"sessions"}
    assert report.refused["sessions"] > report.admitted / 3
    assert len(admission) == 0


def test_without_admission_the_same_load_is_late_for_everybody() -> None:
    load = Workload(sessions=26, seconds=12, deadline=100, session_seconds=10.0)
    assert Simulation(load, COSTS, step_level()).run().on_time < 0.2


def test_costs_may_depend_on_history() -> None:
    costs = CostTable([*COSTS.costs, Cost("perform", 1, 10_000, 27.5), Cost("perform", 2, 10_000, 29.0)])
    short, long = (simulate(replace(EXACT, history=tokens), costs, step_level()) for tokens in (0, 10_000))
    assert long.percentile(50) - short.percentile(50) == pytest.approx(80.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"devices": 3}, "devices: expected 1 or 2, got 3"),
        ({"sessions": 0}, "sessions: expected >= 1, got 0"),
        ({"deadline": 0}, "deadline: expected > 0, got 0"),
        ({"jitter": -1}, "jitter: expected >= 0, got -1"),
        ({"noise": 1.0}, "noise: expected 0 <= noise < 1, got 1.0"),
        ({"slots": (2, 1)}, "slots: expected 0 <= fewest <= most"),
        ({"session_seconds": 0}, "session_seconds: expected > 0, got 0"),
    ],
)
def test_impossible_workloads_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(Workload(), **change)  # type: ignore[arg-type]
