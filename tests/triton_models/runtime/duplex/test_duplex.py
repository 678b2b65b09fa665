"""The thinker/performer loop over models that are not there: one unit's way, and what is refused."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from duplex_bench import CONFIG, DuplexBench, Gate, within

from triton_models.runtime.duplex.contract import UnitResponse
from triton_models.runtime.duplex.conversation import Conversation
from triton_models.runtime.duplex.meter import UNIT_NS
from triton_models.runtime.duplex.options import OptionLimits
from triton_models.runtime.messages import PerceiveJob

pytestmark = pytest.mark.unit

Bench = DuplexBench


def test_one_unit_goes_through_all_stages(make: Callable[..., Bench]) -> None:
    bench = make()
    reply = bench.unit(7, 0, end=True, options='{"seed": 5, "solver_steps": 6, "prompt": "be kind"}')
    within(reply.finished)
    bench.settled()
    assert [what for what, _ in bench.models.log] == ["open", "think", "perform", "close", "close"]
    opened, thought = bench.models.jobs("open")[0], bench.models.jobs("think")[0]
    assert (opened.prompt, opened.seed, opened.retention) == ("be kind", 5, {"window": {"sink": 4, "recent": 50}})
    assert isinstance(thought.perceive, PerceiveJob), "alone, a unit saves the call for its perception"
    performed = bench.models.jobs("perform")[0]
    assert (performed.steps, performed.seed, performed.origin) == (6, 7, 3)
    assert performed.history.page_ids.tolist() == [1]
    assert {job.session for _, job in bench.models.log} == {opened.session}
    response = reply.said[0]
    assert isinstance(response, UnitResponse)
    assert (response.unit, response.state, response.text, response.heard) == (0, "listen", "t0", " h0")
    assert response.info["steps"] == 4
    assert response.info["degradation"] == ["fewer_steps"]


def test_times_add_up(make: Callable[..., Bench]) -> None:
    bench = make()
    reply = bench.unit(7, 0)
    within(reply.spoke)
    response = reply.said[0]
    assert isinstance(response, UnitResponse)
    ms = response.info["ms"]
    assert list(ms) == ["queue", "perceive", "think", "perform", "render", "total"]
    assert sum(value for stage, value in ms.items() if stage != "total") == pytest.approx(ms["total"])
    assert (ms["perceive"], ms["think"], ms["perform"], ms["render"]) == (1.0, 2.0, 4.0, 1.0)


def test_the_deadline_leaves_time_for_what_follows_the_solver(make: Callable[..., Bench]) -> None:
    bench = make()
    for unit in range(40):
        within(bench.unit(7, unit).spoke)
        bench.settled()
    jobs = bench.models.jobs("perform")
    arrival = jobs[0].deadline_ns - UNIT_NS
    assert abs(arrival - 10**12) < 5_000_000
    # From the last solver step to the next look at the clock 1 ms passes.
    latest = bench.clock.now
    assert latest - UNIT_NS < jobs[-1].deadline_ns < latest + UNIT_NS
    assert bench.duplex._loop._after_solver_ns == pytest.approx(1_000_000, rel=0.05)


def test_the_next_unit_is_perceived_early_and_thought_late(make: Callable[..., Bench]) -> None:
    bench = make()
    gate = bench.models.hold("perform", 0)
    one, second = bench.unit("a", 0), bench.unit("a", 1)
    bench.settled()
    assert ("perceive", 1) in bench.models.order
    assert ("think", 1) not in bench.models.order, "z of unit 0 is not there yet"
    gate.set()
    within(second.spoke)
    assert one.units == [0]
    assert second.units == [1]
    assert bench.models.order.index(("perform", 0)) < bench.models.order.index(("think", 1))
    first, then = bench.models.jobs("think")
    assert first.z_video is None
    assert then.z_video.tolist() == np.zeros((2, 2)).tolist(), "z of unit 0"
    assert then.perceive is None, "it was perceived already"


def test_nothing_of_the_next_unit_is_perceived_before_the_last_was_thought(make: Callable[..., Bench]) -> None:
    bench = make()
    gate = bench.models.hold("think", 0)
    bench.unit("a", 0)
    second = bench.unit("a", 1)
    bench.settled()
    assert bench.models.order == [("open", 0), ("think", 0)]
    gate.set()
    within(second.spoke)


def test_sessions_do_not_wait_for_each_other(make: Callable[..., Bench]) -> None:
    bench = make()
    slow_opening = bench.models.gates.setdefault(("open", 0), Gate())
    slow = bench.unit("slow", 0)
    bench.settled()
    bench.models.gates.clear()  # the slow one stands before the gate that is gone, the next one finds none
    quick = bench.unit("quick", 0, end=True)
    within(quick.finished)
    assert slow.said == []
    slow_opening.set()


def test_a_checkpoint_that_reads_little_is_typed_little(make: Callable[..., Bench]) -> None:
    bench = make(limits=OptionLimits(text_bytes=4))
    bench.unit("a", 0)
    refused = bench.unit("a", 1, text=b"seven")
    assert refused.errors == ["INVALID_ARGUMENT: text: expected at most 4 bytes of UTF-8 in one unit, got 5"]
    assert bench.unit("a", 1, text=b"nine").errors == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"pcm": np.full(2560, np.nan, np.float32)}, "INVALID_ARGUMENT: pcm: expected finite"),
        ({"unit": 3}, r"INVALID_ARGUMENT: unit_index: expected 1, got 3 \(units 1 to 2 skipped\)"),
        ({"text": b"x" * 2000}, "INVALID_ARGUMENT: text: expected at most 1024 more tokens"),
        ({"options": "{}"}, "INVALID_ARGUMENT: options: expected only with sequence_start"),
    ],
)
@pytest.mark.parametrize("end", [False, True])
def test_bad_input_is_refused_and_changes_nothing(
    make: Callable[..., Bench], changes: dict[str, Any], expected: str, end: bool
) -> None:
    """Its end flag neither: who knows an id could end the session with it."""
    bench = make()
    first = bench.unit("a", 0, options='{"hold_open": true}')
    within(first.spoke)
    bench.settled()
    before = list(bench.models.log)
    reply = bench.unit("a", **{"unit": 1, **changes}, end=end)
    assert reply.finished.is_set()
    assert len(reply.errors) == 1
    assert re.search(expected, reply.errors[0])
    bench.settled()
    assert bench.models.log == before, "no model heard of it"
    assert not first.finished.is_set()
    good = bench.unit("a", 1)
    within(good.spoke)
    assert good.units == [1]


def test_text_that_waits_in_the_thinker_counts(make: Callable[..., Bench]) -> None:
    bench = make()
    within(bench.unit("a", 0, text=b"x" * 1000).spoke)
    bench.settled()
    room = 1024 - (1000 - CONFIG.language.text_tokens)
    assert f"expected at most {room} more tokens" in bench.unit("a", 1, text=b"y" * (room + 1)).errors[0]
    assert bench.unit("a", 1, text=b"y" * room).errors == []
    bench.settled()
    interrupted = bench.unit("a", 2, text=b"z" * 1024, options='{"interrupt": true}')
    assert interrupted.errors == [], "what waited is forgotten"


def test_no_unit_is_thought_with_the_latents_of_one_before(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it takes between two of the fields that say how far a session has come."""
    bench, solved = make(), threading.Event()

    def slowly(talk: Conversation, name: str, value: Any) -> None:
        object.__setattr__(talk, name, value)
        if name == "solved" and value == 1:
            solved.set()
            time.sleep(0.1)

    monkeypatch.setattr(Conversation, "__setattr__", slowly)
    within(bench.unit("a", 0).spoke)
    bench.unit("a", 1)
    within(solved)
    within(bench.unit("a", 2).spoke)
    assert [job.z_video.max() for job in bench.models.jobs("think")[1:]] == [0, 1]


def test_a_unit_ahead_of_real_time_waits_and_is_judged_from_then(make: Callable[..., Bench]) -> None:
    bench = make(ahead_units=1, max_in_flight=9)
    replies = [bench.unit("greedy", unit) for unit in range(3)]
    within(replies[1].spoke)
    bench.settled()
    assert [job.unit for job in bench.models.jobs("think")] == [0, 1]
    other = bench.unit("other", 0)
    within(other.spoke)
    within(replies[2].spoke)
    response = replies[2].said[0]
    assert isinstance(response, UnitResponse)
    assert response.info["degradation"] == []
    assert bench.models.jobs("think")[-1].latest_ns > bench.clock.now
    replies += [bench.unit("greedy", unit) for unit in (3, 4)]
    bench.duplex.abandon("over")
    bench.settled()
    assert len(replies[4].errors) == 1, "who waits hears of the end"
