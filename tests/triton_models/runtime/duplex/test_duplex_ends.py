"""The ends of sessions in the thinker/performer loop: streams, losses, resumption, drain, order."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from duplex_bench import DuplexBench, within

pytestmark = pytest.mark.unit

Bench = DuplexBench


def test_hold_open_keeps_the_first_stream_until_the_end(make: Callable[..., Bench]) -> None:
    bench = make()
    first = bench.unit("a", 0, options='{"hold_open": true}')
    within(first.spoke)
    bench.settled()
    last = bench.unit("a", 1, end=True)
    assert not first.finished.is_set()
    within(last.finished)
    within(first.finished)
    assert first.units == [0]
    assert last.units == [1]
    assert first.errors == last.errors == []


@pytest.mark.parametrize("hold_open", [True, False])
def test_a_vanished_client_frees_its_session(make: Callable[..., Bench], hold_open: bool) -> None:
    bench = make()
    gate = None if hold_open else bench.models.hold("perform", 0)  # without hold_open only an open unit can tell
    reply = bench.unit("a", 0, options='{"hold_open": true}' if hold_open else "")
    bench.settled()
    reply.gone = True
    bench.duplex.poll()
    assert reply.finished.is_set()
    if gate:
        gate.set()
    bench.settled()
    assert len(bench.models.jobs("close")) == 2
    assert len(bench.duplex.table) == 0


def test_an_idle_session_expires_and_its_stream_hears_why(make: Callable[..., Bench]) -> None:
    bench = make(idle_ns=10**9)
    reply = bench.unit("a", 0, options='{"hold_open": true}')
    within(reply.spoke)
    bench.settled()
    bench.clock.now += 2 * 10**9
    bench.duplex.poll()
    assert reply.errors == ["ABORTED: session 'a' has ended: idle for 1 s"]
    assert reply.finished.is_set()


def test_a_lost_session_is_resumed_on_a_new_stream(make: Callable[..., Bench]) -> None:
    bench = make()
    gate = bench.models.hold("perform", 1)
    options = '{"hold_open": true, "resume": true}'
    first = bench.unit("a", 0, options=options)
    within(first.spoke)
    bench.settled()
    lost = bench.unit("a", 1)
    bench.settled()
    first.gone = lost.gone = True
    bench.duplex.poll()
    assert first.finished.is_set()
    assert lost.finished.is_set()
    gate.set()
    again = bench.unit("a", 2, start=True, options=options)
    within(again.spoke)
    assert again.units == [2]
    assert lost.said == [], "its output belonged to the lost stream"
    assert [what for what, _ in bench.models.log].count("open") == 1
    assert not again.finished.is_set()
    counted = bench.duplex.status()
    assert (counted["units.on_time"], counted["units.failed"], counted["sessions.resumed"]) == (2, 1, 1)


def test_a_takeover_dismisses_the_old_stream(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.models.hold("perform", 0)
    options = '{"hold_open": true, "resume": true}'
    old = bench.unit("a", 0, options=options)
    bench.settled()
    bench.unit("a", 1, start=True, options=options)
    assert old.errors == ["ABORTED: session 'a' was resumed on another stream"]
    assert old.finished.is_set()
    assert bench.duplex.status()["units.failed"] == 1


def test_drain_answers_what_is_open_and_refuses_the_rest(make: Callable[..., Bench]) -> None:
    bench = make()
    gate = bench.models.hold("perform", 0)
    idle = bench.unit("idle", 0, options='{"hold_open": true}')
    bench.settled()
    gate.set()
    within(idle.spoke)
    bench.settled()
    gate.clear()
    busy = bench.unit("busy", 0)
    bench.settled()
    bench.duplex.drain()
    assert idle.errors == ["UNAVAILABLE: session 'idle' has ended: the server is shutting down"]
    assert bench.unit("new", 0).errors[0].startswith("UNAVAILABLE")
    gate.set()
    within(busy.finished)
    assert busy.units == [0]
    bench.settled()
    assert bench.duplex.status()["sessions"] == bench.duplex.status()["freeing"] == 0


def test_units_keep_their_order_whatever_the_models_do(make: Callable[..., Bench]) -> None:
    """Two units under way at all times, stages of random length: jobs and answers keep their order."""
    bench = make()
    rng = np.random.default_rng(0)
    original = bench.models.call

    def jittered(job: Any) -> Any:
        time.sleep(rng.integers(0, 3) / 1000)
        return original(job)

    bench.duplex._call_thinker = bench.duplex._call_performer = jittered
    replies = [bench.unit("a", 0)]
    for unit in range(1, 60):
        replies.append(bench.unit("a", unit, end=unit == 59))
        within(replies[-2].spoke)
    within(replies[-1].finished)
    assert [reply.units for reply in replies] == [[unit] for unit in range(60)]
    done: dict[str, int] = {"perceive": -1, "think": -1, "perform": -1}
    for what, unit in bench.models.order:
        if what == "perceive" or (what == "think" and unit > done["perceive"]):
            assert done["think"] == unit - 1
            done["perceive"] = unit
        if what in ("think", "perform"):
            assert done[what] == unit - 1
            done[what] = unit
        if what == "think":
            assert done["perform"] == unit - 1
