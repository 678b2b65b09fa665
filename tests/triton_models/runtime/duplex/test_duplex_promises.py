"""Promises, degradation and interruption in the thinker/performer loop."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from duplex_bench import DuplexBench, books, within

from triton_models.runtime.duplex.contract import UnitResponse

pytestmark = pytest.mark.unit

Bench = DuplexBench


def test_over_capacity_is_refused_with_the_figures_and_room_comes_back(make: Callable[..., Bench]) -> None:
    admission = books()
    bench = make(admission=admission)
    replies = [bench.unit(key, 0) for key in (1, 2, 3)]
    for reply in replies:
        within(reply.finished if reply.errors else reply.spoke)
    assert [len(reply.errors) for reply in replies] == [0, 0, 1]
    assert "RESOURCE_EXHAUSTED: sessions: this server keeps 2.0 on time" in replies[2].errors[0]
    within(bench.unit(1, 1, end=True).finished)
    bench.settled()
    assert len(admission) == 1
    reply = bench.unit(3, 0)
    within(reply.spoke)
    assert reply.units == [0]


def test_more_solver_steps_count_as_more_than_one_session(make: Callable[..., Bench]) -> None:
    bench = make(admission=books())
    within(bench.unit("greedy", 0, options='{"solver_steps": 8}').spoke)
    assert "2.0 on time (measured step costs), 1 open sessions take 2.0" in bench.unit("usual", 0).errors[0]


def test_full_retention_says_how_long_it_lasts_and_ends_with_a_notice(make: Callable[..., Bench]) -> None:
    admission = books(sessions=1.0, pages=40, full_seconds=(1.0, 60.0), notice_seconds=0.5)
    bench = make(admission=admission)
    first = bench.unit("long", 0, options='{"retention": "full"}')
    within(first.spoke)
    ticket = admission.ticket(bench.duplex.table.sessions[0].name)
    assert ticket is not None
    assert ticket.units is not None
    answers = [first]
    for unit in range(1, ticket.units):
        answers.append(bench.unit("long", unit))
        within(answers[-1].spoke)
        bench.settled()
    infos = [reply.said[0].info for reply in answers if isinstance(reply.said[0], UnitResponse)]
    assert infos[0]["lasts_seconds"] == ticket.seconds
    assert ["notice" in info for info in infos].count(True) == ticket.notice_units
    assert "notice" in infos[-1]
    assert "skipped" in bench.unit("long", ticket.units + 9).errors[0], "who only knows the id ends nothing"
    assert "pcm" in bench.unit("long", ticket.units, pcm=np.full(2560, np.nan, np.float32)).errors[0]
    assert len(bench.duplex.table) == 1
    over = bench.unit("long", ticket.units)
    within(over.finished)
    assert "RESOURCE_EXHAUSTED: retention full" in over.errors[0]
    bench.settled()
    assert len(bench.duplex.table) == 0
    assert len(admission) == 0


def test_a_late_unit_repeats_its_picture_and_then_loses_its_sound(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.models.steps = 4

    def late_by(unit: int, ms: int) -> UnitResponse:
        gate = bench.models.hold("perform", unit)
        reply = bench.unit(7, unit)
        bench.settled()
        bench.clock.now += ms * 1_000_000
        gate.set()
        within(reply.spoke)
        bench.settled()
        assert isinstance(reply.said[0], UnitResponse)
        return reply.said[0]

    late_by(0, 0)
    in_time, late, very_late, again = [late_by(unit, ms) for unit, ms in ((1, 0), (2, 200), (3, 400), (4, 0))]
    assert in_time.info["degradation"] == []
    assert late.info["degradation"] == ["repeat_frame"]
    assert (late.pcm == 2.0).all()
    assert very_late.info["degradation"] == ["repeat_frame", "silence"]
    assert not very_late.pcm.any()
    assert again.info["degradation"] == []
    assert (again.pcm == 4.0).all()


def test_an_interruption_drops_what_is_on_its_way(make: Callable[..., Bench]) -> None:
    bench = make()
    within(bench.unit(7, 0).spoke)
    gate = bench.models.hold("perform", 1)
    old = bench.unit(7, 1)
    bench.settled()
    new = bench.unit(7, 2, options='{"interrupt": true}')
    gate.set()
    within(new.spoke)
    dropped, fresh = old.said[0], new.said[0]
    assert isinstance(dropped, UnitResponse)
    assert isinstance(fresh, UnitResponse)
    assert dropped.info["dropped"] is True
    assert (dropped.text, dropped.pcm.any()) == ("", False)
    assert dropped.heard == " h1", "what the user said stays said"
    assert (fresh.text, fresh.pcm.all()) == ("t2", True)
    assert fresh.info["epoch"] > dropped.info["epoch"]
    refused = bench.unit(7, 3, options='{"seed": 1}')
    assert 'or {"interrupt": true} alone' in refused.errors[0]
