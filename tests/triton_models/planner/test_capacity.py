"""Capacity: what was not measured lets nobody in, what carries nobody says so, and `full` is not planned as empty."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from engine_builder.presets import preset
from triton_models import launch
from triton_models.planner import capacity
from triton_models.runtime.budget import probe
from triton_models.runtime.budget.admission import Admission, usual_history
from triton_models.runtime.budget.costs import Cost, CostTable
from triton_models.runtime.kv.retention import Full, Window
from triton_models.runtime.messages import SessionError

pytestmark = pytest.mark.unit
TINY = preset("tiny")
QUICK = dict.fromkeys(("perceive", "think", "slot", "perform", "render"), (1.0, 0.5))


class Engines:
    """As much of a manifest as capacity looks at."""

    model, target, defaults = TINY, "onnxruntime", {}
    limits = {"max_batch": 8, "page_tokens": 16}  # noqa: RUF012
    engines = ()


def ask(costs: CostTable | None, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(launch, "load_costs", lambda *_: costs)
    monkeypatch.setattr(launch, "measured_costs", lambda *_: costs)
    args = argparse.Namespace(engines=Path("engines"), threads=1, device="", max_sessions=32)
    return launch._capacity(args, Engines(), 1024, 32)  # pyright: ignore[reportArgumentType]


def test_costs_that_cannot_be_measured_are_no_reason_to_admit(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(launch.LaunchError, match=r"could not be measured .*--admit-all takes up to --max-sessions"):
        ask(None, monkeypatch)


def test_a_measurement_that_fails_gives_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[Any] = []
    monkeypatch.setattr(capacity, "load_costs", lambda *_: None)
    monkeypatch.setattr(capacity.subprocess, "run", lambda command, **_: ran.append(command))
    assert capacity.measured_costs(tmp_path, 1) is None
    assert ran[0][1:4] == ["-m", "triton_models.measure", "--engines"]


def test_a_machine_that_carries_none_admits_none_and_says_what_helps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = CostTable.linear({**QUICK, "perform": (100.0, 1.0)})
    sessions = ask(slow, monkeypatch)
    assert sessions == 0
    said = capsys.readouterr().out
    assert "NONE is admitted: a unit takes at least 4" in said
    assert "What helps: a faster machine" in said
    with pytest.raises(SessionError, match=r"keeps 0\.0 on time|real time: a unit"):
        Admission.of(TINY, slow, Window(1, 4), sessions, 1000, 16).admit("a", Window(1, 4), 0, 4)
    assert ask(CostTable.linear(QUICK), monkeypatch) > 0


def test_full_history_is_planned_for_its_mean_length() -> None:
    by_pool = usual_history(TINY, Full(), 1001, 16)
    assert 0.4 * 16_000 < by_pool <= 8_000, "half of what the pool holds"
    by_time = usual_history(TINY, Full(), 10**6, 16)
    assert by_time == 1875 * TINY.unit_positions, "half of ten minutes"
    assert usual_history(TINY, Window(0, 5), 1001, 16) < usual_history(TINY, Window(0, 50), 1001, 16)


def test_a_busy_moment_in_one_round_leaves_no_trace() -> None:
    quiet = [Cost("perform", rows, 64, 2.0 * rows) for rows in (1, 2)]
    busy = [Cost("perform", rows, 64, 9.0 * rows) for rows in (1, 2)]
    mixed = [busy[0], quiet[1], *quiet, *busy]
    assert sorted(probe._fastest(mixed), key=lambda cost: cost.batch) == quiet
