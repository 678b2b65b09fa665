"""The guard: what it keeps back, what happens when it is late or fails, and that it forgets."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from duplex_bench import DuplexBench, Gate, Recorder, within

from triton_models.launcher.checks import LaunchError, check_guard
from triton_models.runtime.duplex.contract import UnitResponse
from triton_models.runtime.duplex.conversation import Conversation
from triton_models.runtime.duplex.guard import GuardSettings, Verdict, WordList, load_guard

pytestmark = pytest.mark.unit
Bench = DuplexBench


def talk(bench: Bench, units: int) -> list[Recorder]:
    """Units of one session, one after the other; the models say "t0", "t1", ... and sound of the unit's number."""
    replies = []
    for unit in range(units):
        replies.append(bench.unit("a", unit))
        within(replies[-1].spoke)
        bench.settled()
    return replies


def answer(reply: Recorder) -> UnitResponse:
    [response] = reply.said
    assert isinstance(response, UnitResponse), response
    return response


def test_words_are_found_whole_and_over_the_border_of_units() -> None:
    words = WordList(["bad word", "worse"], units=3)
    assert [words.look("a", unit, "speak", text).kind for unit, text in enumerate(("a bad", " wo", "rd", "."))] == [
        "pass",
        "pass",
        "mute",
        "pass",
    ]
    assert words.look("b", 0, "speak", "WORSE!") == Verdict("mute", "words: 'WORSE'", 3)
    assert words.look("b", 1, "speak", "worsening").kind == "pass"
    words.forget("a")
    words.forget("b")
    assert words._said == {}


class Of:
    """Says `verdict` of one text, and remembers its sessions."""

    def __init__(self, text: str, verdict: Verdict) -> None:
        self.text, self.verdict, self.sessions = text, verdict, set[str]()

    def look(self, session: str, unit: int, state: str, text: str) -> Verdict:
        self.sessions.add(session)
        return self.verdict if text == self.text else Verdict("pass")

    def forget(self, session: str) -> None:
        self.sessions.discard(session)


def test_muted_units_go_out_without_text_and_sound(make: Callable[..., Bench]) -> None:
    bench = make(guard=(Of("t2", Verdict("mute", "rude", 2)), GuardSettings()))
    replies = [answer(reply) for reply in talk(bench, 6)]
    assert [reply.text for reply in replies] == ["t0", "t1", "", "", "t4", "t5"]
    assert [float(np.abs(reply.pcm).max()) for reply in replies] == [0, 1, 0, 0, 4, 5]
    assert [reply.info.get("muted") for reply in replies] == [None, None, "rude", "rude", None, None]
    counted = bench.duplex.status()
    assert (counted["guard.pass"], counted["guard.mute"]) == (5, 1)


def test_a_guard_ends_a_session(make: Callable[..., Bench]) -> None:
    guard = Of("t1", Verdict("end", "rude"))
    bench = make(guard=(guard, GuardSettings()))
    replies = talk(bench, 2)
    assert replies[1].errors == ["ABORTED: the guard ended the session: rude"]
    bench.settled()
    bench.duplex._guard._thread.submit(int).result()  # pyright: ignore
    assert guard.sessions == set(), "what it knew of the session is gone"


def test_a_session_that_ends_under_its_unit_is_forgotten(make: Callable[..., Bench], monkeypatch: Any) -> None:
    guard = Of("none", Verdict("end"))
    bench = make(guard=(guard, GuardSettings()))
    reach = Conversation.reach

    def end(talk: Conversation, **stages: Any) -> None:
        reach(talk, **stages)
        bench.duplex.abandon("the thinker has died")

    monkeypatch.setattr(Conversation, "reach", end)
    bench.unit("a", 0)
    bench.settled()
    bench.duplex._guard._thread.submit(int).result()  # pyright: ignore
    assert guard.sessions == set()


class Slow:
    def __init__(self, gate: Gate | None) -> None:
        self.gate = gate

    def look(self, *_: Any) -> Verdict:
        if self.gate is None:
            raise RuntimeError("out of order")
        self.gate.wait()
        return Verdict("pass")

    def forget(self, session: str) -> None: ...


@pytest.mark.parametrize("fails", [False, True], ids=["late", "fails"])
@pytest.mark.parametrize("late", ["pass", "mute", "end"])
def test_a_guard_that_is_late_or_fails_does_what_its_file_says(
    make: Callable[..., Bench], late: Any, fails: bool
) -> None:
    gate = Gate()
    bench = make(guard=(Slow(None if fails else gate), GuardSettings(late=late, budget_ms=5)))
    reply = bench.unit("a", 0)
    within(reply.spoke)
    if late == "end":
        assert reply.errors == ["ABORTED: the guard ended the session: the guard was late"]
    else:
        assert answer(reply).text == ("t0" if late == "pass" else "")
    assert bench.duplex.status()["guard.late"] == 1
    gate.set()


def test_what_it_says_costs_no_time_while_the_unit_is_solved(make: Callable[..., Bench]) -> None:
    asked = threading.Event()

    class Asked(Slow):
        def look(self, *_: Any) -> Verdict:
            asked.set()
            return Verdict("pass")

    bench = make(guard=(Asked(None), GuardSettings()))
    gate = bench.models.hold("perform", 0)
    reply = bench.unit("a", 0)
    within(asked)
    gate.set()
    within(reply.spoke)


BAD = {
    "no JSON": "{",
    "an unknown field": '{"word": ["a"]}',
    "no words": '{"options": {"words": []}}',
    "a word that is none": '{"options": {"words": [1]}}',
    "an unknown option": '{"options": {"words": ["a"], "loud": 1}}',
    "an unknown class": '{"guard": "triton_models.runtime.duplex.guard:Nobody"}',
    "an unknown module": '{"guard": "nobody:Nobody"}',
    "no module": '{"guard": ":"}',
    "no budget": '{"options": {"words": ["a"]}, "budget_ms": 0}',
    "no verdict": '{"options": {"words": ["a"]}, "late": "louder"}',
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_a_file_that_is_none_is_refused_at_the_start(text: str, tmp_path: Path) -> None:
    file = tmp_path / "guard.json"
    file.write_text(text)
    with pytest.raises(LaunchError, match=f"--guard {file}: "):
        check_guard(file)
    with pytest.raises(LaunchError, match="No such file"):
        check_guard(tmp_path / "none")


def test_a_guard_is_loaded_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "guard.json"
    file.write_text(json.dumps({"options": {"words": ["damn"], "verdict": "end"}, "budget_ms": 20, "late": "pass"}))
    guard, settings = load_guard(file)
    assert guard.look("a", 0, "speak", "damn.").kind == "end"
    assert (settings.budget_ms, settings.late) == (20, "pass")
    assert check_guard(file) == str(file)
    assert check_guard(None) == ""
