"""The ends of sessions in the thinker/performer loop: streams, losses, resumption, drain, order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from duplex_bench import WAIT, DuplexBench, Gate, Recorder, books, within

pytestmark = pytest.mark.unit

Bench = DuplexBench
HELD = '{"hold_open": true, "resume": true}'


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


def test_a_start_whose_client_has_gone_begins_nothing(make: Callable[..., Bench]) -> None:
    bench = make()
    gone = bench.unit("a", 0, options=HELD, reply=Recorder(gone=True))
    assert gone.finished.is_set()
    assert (gone.said, bench.models.log, len(bench.duplex.table)) == ([], [], 0)


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
    first = bench.unit("a", 0, options=HELD)
    within(first.spoke)
    bench.settled()
    lost = bench.unit("a", 1)
    bench.settled()
    first.gone = lost.gone = True
    bench.duplex.poll()
    assert first.finished.is_set()
    assert lost.finished.is_set()
    gate.set()
    again = bench.unit("a", 2, start=True, options=HELD)
    within(again.spoke)
    assert again.units == [2]
    assert lost.said == [], "its output belonged to the lost stream"
    assert [what for what, _ in bench.models.log].count("open") == 1
    assert not again.finished.is_set()
    counted = bench.duplex.status()
    assert (counted["units.on_time"], counted["units.failed"], counted["sessions.resumed"]) == (2, 1, 1)


def test_who_resumes_while_the_watch_asks_keeps_the_new_stream(make: Callable[..., Bench]) -> None:
    """Asking takes a message to the server; the answer was taken for one about the stream that came meanwhile."""
    bench, new = make(), Recorder()

    class Lost(Recorder):
        def cancelled(self) -> bool:
            if self.gone and not new.said:
                bench.unit("a", 1, start=True, options=HELD, reply=new)
                within(new.spoke)
            return self.gone

    old = bench.unit("a", 0, options=HELD, reply=Lost())
    within(old.spoke)
    bench.settled()
    old.gone = True
    bench.duplex.poll()
    assert (new.units, new.finished.is_set()) == ([1], False)
    session = bench.duplex.table.get("a")
    assert session is not None
    assert session.state == "open"


def resumed_elsewhere(bench: Bench, old: Recorder) -> None:
    bench.unit("a", 1, start=True, options=HELD)


def vanished(bench: Bench, old: Recorder) -> None:
    old.gone = True
    bench.duplex.poll()


def abandoned(bench: Bench, old: Recorder) -> None:
    bench.duplex.abandon("the thinker has died")


def refused(bench: Bench, old: Recorder) -> None:
    bench.unit("a", 7, reply=Recorder(hold=old.hold))


@pytest.mark.parametrize(
    ("happens", "expected"),
    [
        (resumed_elsewhere, ["ABORTED: session 'a' was resumed on another stream"]),
        (vanished, []),
        (abandoned, ["UNAVAILABLE: the thinker has died"]),
        (refused, []),
    ],
)
def test_no_session_waits_for_what_another_is_told(
    make: Callable[..., Bench], happens: Callable[[Bench, Recorder], None], expected: list[str]
) -> None:
    """A reply may block for as long as it likes: its queue is full, say."""
    bench = make()
    bench.models.hold("perform", 0)
    old = bench.unit("a", 0, options=HELD)
    bench.settled()
    old.hold = gate = Gate()
    event = threading.Thread(target=happens, args=(bench, old), daemon=True)
    event.start()
    end = time.monotonic() + WAIT
    while not gate.waiting:
        assert time.monotonic() < end
        time.sleep(0.001)
    other = threading.Thread(target=bench.duplex.status, daemon=True)
    other.start()
    other.join(WAIT / 4)
    served = not other.is_alive()
    gate.set()
    event.join(WAIT)
    assert served
    assert old.errors == expected
    assert old.finished.is_set() == (happens is not refused)


@pytest.mark.parametrize(("unit", "typed"), [(1, {"text": b"long"}), (0, {"options": '{"prompt": "long"}'})])
def test_no_session_waits_for_the_tokens_of_another(
    make: Callable[..., Bench], unit: int, typed: dict[str, Any]
) -> None:
    bench = make(admission=books())
    within(bench.unit("a", 0).spoke)
    counting, go_on = threading.Event(), threading.Event()

    def count(text: str) -> int:
        counted.append(text)
        counting.set()
        assert go_on.wait(WAIT)
        return len(text)

    counted: list[str] = []
    bench.duplex._count_tokens = count
    arrival = threading.Thread(target=lambda: bench.unit("a" if unit else "b", unit, **typed), daemon=True)
    arrival.start()
    within(counting)
    other = threading.Thread(target=bench.duplex.status, daemon=True)
    other.start()
    other.join(WAIT / 4)
    served = not other.is_alive()
    go_on.set()
    arrival.join(WAIT)
    assert served
    assert counted == ["long"], "once is enough"


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


def test_while_draining_open_sessions_go_on_and_know_how_long(make: Callable[..., Bench]) -> None:
    bench = make()
    talk = bench.unit("old", 0, options='{"hold_open": true, "resume": true}')
    bench.settled()
    assert "leaves_seconds" not in talk.said[0].info
    bench.duplex.drain(60.0)
    [refused] = bench.unit("new", 0).errors
    assert refused == "UNAVAILABLE: sessions: this server is going away; start again, on another one"
    said = bench.unit("old", 1)
    bench.settled()
    assert 55 < said.said[0].info["leaves_seconds"] <= 60
    talk2 = bench.unit("old", 2, start=True, options='{"resume": true, "hold_open": true}')
    bench.settled()
    assert talk2.units == [2], "who lost a connection still comes back"
    assert 55 < talk2.said[0].info["leaves_seconds"] <= 60
    assert talk2.said[0].info["notice"].startswith("this server is going away: ")
    room = bench.duplex.status()["room"]
    assert (room["admitted"], room["free"], room["draining"]) == (1, 0, True)
    bench.clock.now += 61 * 10**9
    bench.duplex.poll()
    bench.settled()
    assert bench.duplex.status()["sessions"] == 0
    assert talk2.errors == ["UNAVAILABLE: session 'old' has ended: the server is shutting down"]


def test_the_room_counts_places_that_are_kept(make: Callable[..., Bench]) -> None:
    bench = make(admission=books(sessions=3))
    open_, lost = '{"hold_open": true}', '{"hold_open": true, "resume": true}'
    bench.unit("a", 0, options=open_)
    reply = bench.unit("b", 0, options=lost)
    bench.settled()
    reply.gone = True
    bench.duplex.poll()
    expected = {"capacity": 3, "admitted": 1, "reserved": 1, "free": 1, "draining": False}
    assert bench.duplex.status()["room"] == expected
    bench.unit("c", 0)
    bench.settled()
    [full] = bench.unit("d", 0).errors
    assert full.endswith("retry after 1 s")


def test_a_place_that_is_being_freed_is_not_free_as_well(make: Callable[..., Bench]) -> None:
    bench = make(max_sessions=3)
    gate = bench.models.hold("think", 0)
    bench.unit("a", 0)
    bench.settled()
    bench.duplex.abandon("the performer has died")
    bench.duplex.table.closing = False
    bench.settled()
    assert bench.duplex.status()["freeing"] == 1
    expected = {"capacity": 3, "admitted": 0, "reserved": 1, "free": 2, "draining": False}
    assert bench.duplex.status()["room"] == expected
    gate.set()
    bench.settled()
    assert bench.duplex.status()["room"]["free"] == 3


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
