"""The fleet's simulation against Erlang's formula, and against the real books of admission."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_builder.presets import preset
from triton_models.plan import main
from triton_models.planner.fleet import FleetPlan, Room, erlang_b, servers_needed, simulate_fleet
from triton_models.planner.workload import gpu_like
from triton_models.runtime.budget.admission import Admission, Budget
from triton_models.runtime.kv.retention import Window
from triton_models.runtime.messages import SessionError

pytestmark = pytest.mark.unit


def plan(servers: int, capacity: int, load: float, **more: object) -> FleetPlan:
    """A constant offered `load`, as a share of all slots."""
    arrivals = (load * servers * capacity * 3600 / 60,)
    return FleetPlan(servers=servers, capacity=capacity, arrivals=arrivals, session_seconds=60, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("slots", "load", "blocking"), [(1, 1, 0.5), (2, 1, 0.2), (10, 5, 0.018385), (100, 80, 0.003992), (0, 3, 1)]
)
def test_erlang_b_is_the_published_table(slots: int, load: float, blocking: float) -> None:
    assert erlang_b(slots, load) == pytest.approx(blocking, rel=1e-3)


@pytest.mark.parametrize(("servers", "capacity", "load"), [(1, 6, 0.9), (3, 10, 0.95), (20, 8, 1.1)])
def test_routing_by_free_room_makes_one_pool_of_the_fleet(servers: int, capacity: int, load: float) -> None:
    report = simulate_fleet(plan(servers, capacity, load, hours=20))
    assert report.blocking == pytest.approx(erlang_b(servers * capacity, load * servers * capacity), abs=0.02)


def test_worse_routing_refuses_more() -> None:
    found = [
        simulate_fleet(plan(20, 8, 0.9, hours=10, routing=r)).blocking for r in ("free-room", "two-choices", "random")
    ]
    assert found == sorted(found)
    assert found[-1] > found[0] + 0.02


def test_servers_needed_is_the_least_that_does() -> None:
    need = servers_needed(load=90, capacity=8, blocking=0.001)
    assert erlang_b(8 * need, 90) <= 0.001 < erlang_b(8 * (need - 1), 90)


def test_one_server_refuses_whom_its_admission_refuses() -> None:
    """The same arrivals and ends at the real books and at the simulation's room: the same answers."""
    keep, costs = Window(4, 50), gpu_like(6.0, 1.5)
    config = preset("v0.1-0.6b")
    books = Admission(config, costs, Budget(sessions=9.4, solver_steps=4, pages=100_000, page_tokens=16))
    room = Room(int(books.budget.shares + 1e-9), random.Random(0))
    room.add(0)
    rng, inside = random.Random(1), []
    for number in range(2000):
        if inside and rng.random() < 0.45:
            books.release(inside.pop(rng.randrange(len(inside))))
            room.change(0, -1)
            continue
        try:
            books.admit(str(number), keep, 0, 4)
            admitted = True
        except SessionError:
            admitted = False
        assert (room.pick("free-room") is not None) == admitted
        if admitted:
            inside.append(str(number))
            room.change(0, 1)


def test_failures_and_updates_cut_what_they_must_and_no_more() -> None:
    calm = simulate_fleet(plan(10, 8, 0.5, hours=6, update_hour=1, drain_seconds=3600))
    assert (calm.cut_by_updates, calm.cut_by_failures, calm.updated) == (0, 0, 10)
    hasty = simulate_fleet(plan(10, 8, 0.5, hours=6, update_hour=1, drain_seconds=5))
    assert hasty.cut_by_updates > 0
    broken = simulate_fleet(plan(10, 8, 0.5, hours=6, failure_hours=5))
    assert broken.failures > 0
    assert broken.cut_by_failures / broken.failures == pytest.approx(4, abs=2)


def test_the_scaler_follows_the_day() -> None:
    arrivals = tuple(2000.0 if 8 <= hour < 20 else 200.0 for hour in range(24))
    fixed = FleetPlan(servers=30, capacity=4, arrivals=arrivals, session_seconds=120)
    scaled = FleetPlan(servers=30, capacity=4, arrivals=arrivals, session_seconds=120, free_share=0.3)
    a, b = simulate_fleet(fixed), simulate_fleet(scaled)
    assert b.server_hours < 0.7 * a.server_hours
    assert b.blocking < 0.02


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_nothing_is_lost_whatever_happens(data: st.DataObject) -> None:
    servers, capacity = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 6))
    report = simulate_fleet(
        plan(
            servers,
            capacity,
            data.draw(st.floats(0.1, 2)),
            hours=2,
            seed=data.draw(st.integers(0, 99)),
            failure_hours=data.draw(st.sampled_from([None, 0.5, 5.0])),
            update_hour=data.draw(st.sampled_from([None, 0.5])),
            free_share=data.draw(st.sampled_from([None, 0.3])),
            drain_seconds=data.draw(st.sampled_from([10.0, 600.0])),
        )
    )
    assert 0 <= report.refused <= report.offered
    assert all(0 <= sessions <= up * capacity for _, sessions, _, up, _ in report.samples)
    assert report.refused_again <= report.cut_by_failures + report.cut_by_updates


def test_the_command_writes_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--fleet", "3", "--server-sessions", "4", "--arrivals", "100", "--hours", "3", "--failure-hours", "2"]
    assert main([*arguments, "--update-hour", "1", "--price", "2.5", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "Erlang B" in said
    assert "new sessions refused" in said
    assert {path.name for path in tmp_path.iterdir()} == {"fleet.csv", "fleet.png"}
