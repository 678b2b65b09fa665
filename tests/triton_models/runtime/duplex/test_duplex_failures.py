"""The thinker/performer loop when a stage fails or a call does not come back."""

from __future__ import annotations

import gc
import json
import time
import weakref
from collections.abc import Callable

import pytest
from duplex_bench import DuplexBench, within

from triton_models.runtime.messages import SessionError

pytestmark = pytest.mark.unit

Bench = DuplexBench


@pytest.mark.parametrize("stage", ["open", "think", "perform"])
@pytest.mark.parametrize("error", [SessionError("RESOURCE_EXHAUSTED", "kv pages: none left"), RuntimeError("boom")])
def test_a_failing_stage_ends_the_session_with_its_error(
    make: Callable[..., Bench], stage: str, error: Exception
) -> None:
    bench = make()
    bench.models.errors[stage, 0] = error
    other = bench.unit("other", 0) if stage != "open" else None
    reply = bench.unit("a", 0, options='{"hold_open": true}')
    within(reply.finished)
    code = error.code if isinstance(error, SessionError) else "INTERNAL"
    assert len(reply.errors) == 1
    assert reply.errors[0].startswith(code)
    bench.settled()
    closed = [job.session for job in bench.models.jobs("close")]
    assert closed.count("str:a#2" if other else "str:a#1") == 2, "both models free it"
    assert len(bench.duplex.table) == 0
    assert "NOT_FOUND" in bench.unit("a", 1).errors[0]


def test_all_waiting_units_of_a_failed_session_are_told(make: Callable[..., Bench]) -> None:
    bench = make()
    gate = bench.models.hold("perform", 0)
    bench.models.errors["perform", 0] = SessionError("INTERNAL", "NaN or Inf in the velocity")
    first, second = bench.unit("a", 0), bench.unit("a", 1)
    bench.settled()
    gate.set()
    within(second.finished)
    assert first.errors == second.errors == ["INTERNAL: NaN or Inf in the velocity"]
    assert first.finished.is_set()


def test_a_failed_session_leaves_nothing_to_the_garbage_collector(make: Callable[..., Bench]) -> None:
    """Its error held the frames that it came through, and they the session with its newest unit, 130 kB: a soak's
    `duplex` grew by 2%."""
    bench = make()
    gate = bench.models.hold("perform", 0)
    bench.models.errors["perform", 0] = SessionError("ABORTED", "it was closed")
    gc.disable()
    try:
        reply = bench.unit("a", 0)
        bench.settled()
        talk = weakref.ref(bench.duplex._conversations["str:a#1"])
        gate.set()
        within(reply.finished)
        bench.settled()
        bench.models.errors.clear()
        assert talk() is None
    finally:
        gc.enable()


def test_a_call_that_never_returns_becomes_an_error(make: Callable[..., Bench]) -> None:
    bench = make(stall_seconds=0.05)
    bench.models.hold("perform", 0)
    reply = bench.unit("a", 0)
    bench.settled()
    time.sleep(0.06)
    bench.duplex.poll()
    assert reply.finished.is_set()
    assert reply.errors == ["UNAVAILABLE: perform: no result in 0.05 s"]
    assert bench.duplex.status()["oldest_call_s"] > 0, "the launcher sees that something hangs"


def test_a_long_opening_is_no_hang(make: Callable[..., Bench]) -> None:
    """A prompt of some kilobytes took 10 s, and the launcher took that for a dead server."""
    bench = make(stall_seconds=0.05)
    gate = bench.models.hold("open", 0)
    reply = bench.unit("a", 0, options='{"prompt": "once upon a time"}')
    bench.settled()
    time.sleep(0.06)
    bench.duplex.poll()
    assert bench.duplex.status()["oldest_call_s"] == 0
    gate.set()
    within(reply.spoke)
    assert reply.units == [0]


def test_prompts_that_are_being_read_are_bounded(make: Callable[..., Bench]) -> None:
    bench = make()
    gate = bench.models.hold("open", 0)
    first = bench.unit("a", 0, options=json.dumps({"prompt": "x" * 10_000}))
    assert (
        "options.prompt: 10000 tokens of others are being read"
        in bench.unit("b", 0, options='{"prompt": "y"}').errors[0]
    )
    bench.settled()
    gate.set()
    within(first.spoke)
    bench.settled()
    second = bench.unit("b", 0, options='{"prompt": "y"}')
    within(second.spoke)
    assert second.units == [0]


def test_pages_are_freed_after_what_was_under_way(make: Callable[..., Bench]) -> None:
    bench = make()
    gate = bench.models.hold("think", 0)
    reply = bench.unit("a", 0)
    bench.settled()
    bench.duplex.abandon("the performer has died")
    bench.settled()
    assert reply.errors == ["UNAVAILABLE: the performer has died"]
    assert len(bench.models.jobs("close")) == 1, "the performer's; the thinker still runs the think job"
    gate.set()
    bench.settled()
    assert len(bench.models.jobs("close")) == 2, "now the thinker's too"
    assert bench.duplex.status()["freeing"] == 0
