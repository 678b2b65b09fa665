"""What the duplex loop counts, event by event."""

from __future__ import annotations

from typing import Any

import pytest

from triton_models.runtime.duplex.meter import PUNCTUAL_UNITS, UNIT_NS, DuplexMeter
from triton_models.runtime.duplex.options import OptionLimits, SessionOptions
from triton_models.runtime.duplex.table import Accepted, Session

pytestmark = pytest.mark.unit

MS = 1_000_000
STAGE_MS = {"queue": 1.0, "perceive": 2.0, "think": 30.0, "perform": 40.0, "render": 5.0, "total": 78.0}


def accepted(unit: int, *, started: bool = False, resumed: bool = False, name: str = "s#1") -> Accepted:
    session = Session(name, name, SessionOptions.parse(None, OptionLimits()), epoch=1, seen_ns=0)
    return Accepted(session, unit, epoch=1, started=started, resumed=resumed, due_ns=0)


def info(*degradation: str) -> dict[str, Any]:
    return {"ms": STAGE_MS, "degradation": list(degradation)}


def test_a_unit_is_on_time_until_the_next_one_is_complete() -> None:
    meter = DuplexMeter()
    meter.accepted(accepted(0, started=True), 0)
    meter.answered(accepted(0), info(), arrival_ns=0, now_ns=UNIT_NS)
    meter.answered(accepted(1), info("fewer_steps"), arrival_ns=UNIT_NS, now_ns=2 * UNIT_NS + 30 * MS)
    counts = meter.metrics.snapshot()
    assert (counts["units.on_time"], counts["units.late"]) == (1, 1)
    assert counts["units.degraded.fewer_steps"] == 1
    values = meter.metrics.take()
    assert values["unit.send_lateness"] == pytest.approx([0, 0.03])
    assert values["unit.think"] == pytest.approx([0.03, 0.03])
    assert set(values) >= {f"unit.{stage}" for stage in STAGE_MS}


def test_lateness_is_measured_from_the_most_punctual_unit() -> None:
    meter = DuplexMeter()
    offsets_ms = (50, 20, 0, 35)  # of arrivals on the 160 ms clock
    for unit, offset in enumerate(offsets_ms):
        meter.accepted(accepted(unit, started=unit == 0), unit * UNIT_NS + offset * MS)
    assert meter.metrics.take()["unit.receive_lateness"] == pytest.approx([0, 0, 0, 0.035])


def test_a_client_that_paused_is_punctual_again() -> None:
    meter = DuplexMeter()
    pause_ns = 5 * UNIT_NS
    for unit in range(2 + PUNCTUAL_UNITS):
        meter.accepted(accepted(unit, started=unit == 0), unit * UNIT_NS + (pause_ns if unit else 0))
    values = meter.metrics.take()["unit.receive_lateness"]
    assert values[1] == pytest.approx(0.8)
    assert values[-1] == 0


def test_a_resumed_session_starts_a_new_clock() -> None:
    meter = DuplexMeter()
    meter.accepted(accepted(0, started=True), 0)
    meter.accepted(accepted(1, resumed=True), 100 * UNIT_NS)
    assert meter.metrics.take()["unit.receive_lateness"] == [0, 0]
    counts = meter.metrics.snapshot()
    assert (counts["sessions.admitted"], counts["sessions.resumed"]) == (1, 1)


def test_repeated_frames_fall_behind_the_sound() -> None:
    meter = DuplexMeter()
    meter.accepted(accepted(0, started=True), 0)
    for unit, left_out in enumerate(((), ("repeat_frame",), ("repeat_frame", "silence"), ())):
        meter.answered(accepted(unit), info(*left_out), unit * UNIT_NS, unit * UNIT_NS)
    assert meter.metrics.take()["unit.av_skew"] == pytest.approx([0, 0.16, 0.32, 0])


def test_ends_and_refusals() -> None:
    meter = DuplexMeter()
    meter.refused("RESOURCE_EXHAUSTED", start=True)
    meter.refused("INVALID_ARGUMENT", start=False)
    meter.accepted(accepted(0, started=True), 0)
    meter.ended("s#1", "failed", unanswered=2)
    assert meter.metrics.snapshot() == {
        "sessions.refused.RESOURCE_EXHAUSTED": 1,
        "units.refused.INVALID_ARGUMENT": 1,
        "sessions.admitted": 1,
        "sessions.ended.failed": 1,
        "units.failed": 2,
    }
    meter.answered(accepted(0), info(), 0, 0)  # late news of a session that is gone: counted, nothing kept
    assert "unit.av_skew" not in meter.metrics.take()
