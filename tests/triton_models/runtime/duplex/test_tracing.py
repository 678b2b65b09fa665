"""Traces of units as OTLP/JSON lines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from duplex_bench import DuplexBench, within

from triton_models.runtime.duplex.tracing import MAX_WAITING, Span, Tracer, spans
from triton_models.runtime.messages import (
    HistoryView,
    OpenJob,
    PerceiveJob,
    PerformJob,
    PerformResult,
    ThinkJob,
    ThinkResult,
)

pytestmark = pytest.mark.unit

MS = 1_000_000
VIEW = HistoryView(np.zeros(1, np.int64), np.zeros((1, 2), np.int64))
NONE = np.zeros((1, 1), np.float32)
PICTURE = np.zeros((1, 1, 1, 3), np.uint8)
INFO = {"ms": {}, "epoch": 3, "steps": 2, "degradation": ["fewer_steps"]}


def hear(session: str, unit: int) -> PerceiveJob:
    return PerceiveJob(session, 1, unit, NONE[0], PICTURE)


def unit_of(
    tracer: Tracer, session: str, unit: int, begin: int, *, along: bool, hops: list[Span] | None = None
) -> None:
    """perceive 2 ms, think 10, perform 20 of which 15 solve, render 5; one after the other from `begin`."""
    heard, hops = hear(session, unit), hops or []
    now = begin
    if not along:
        hops += spans(heard, 2.0, now, now + 3 * MS)
        now += 3 * MS
    thought = ThinkResult(session, 1, unit, "listen", "", VIEW, 0, 0, (), {"perceive": 2.0, "think": 8.0})
    hops += spans(ThinkJob(session, 1, unit, "", heard if along else None), thought, now, now + 12 * MS)
    now += 12 * MS
    ms = {"queue": 3.0, "perform": 15.0, "render": 4.0}
    solved = PerformResult(session, 1, unit, NONE, NONE, 2, now + 20 * MS, NONE[0], PICTURE, ms)
    hops += spans(PerformJob(session, 1, unit, 0, 2, 0, 0), solved, begin, now + 25 * MS)
    now += 20 * MS
    tracer.answered(session, unit, INFO, begin, now + 6 * MS, hops)


def read(path: Path) -> list[list[dict[str, Any]]]:
    """The spans of each line."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line["resourceSpans"][0]["scopeSpans"][0]["spans"] for line in lines]


def attributes(span: dict[str, Any]) -> dict[str, Any]:
    return {item["key"]: next(iter(item["value"].values())) for item in span["attributes"]}


def duration_ms(span: dict[str, Any]) -> float:
    return (int(span["endTimeUnixNano"]) - int(span["startTimeUnixNano"])) / 1e6


def test_one_trace_a_unit_with_its_stages_inside(tmp_path: Path) -> None:
    path = tmp_path / "traces" / "units.jsonl"
    tracer = Tracer(path)
    now = time.monotonic_ns()
    unit_of(tracer, "s", 0, now + MS, along=True, hops=spans(OpenJob("s", 1), None, now, now + MS))
    unit_of(tracer, "s", 1, now + 100 * MS, along=False)
    tracer.close()
    first, second = read(path)
    assert [span["name"] for span in first] == ["unit", "open", "encode", "think", "exchange", "solve", "decode"]
    assert [span["name"] for span in second] == ["unit", "encode", "think", "exchange", "solve", "decode"]
    for trace in (first, second):
        root, *stages = trace
        assert "parentSpanId" not in root
        assert {span["parentSpanId"] for span in stages} == {root["spanId"]}
        assert {span["traceId"] for span in trace} == {root["traceId"]}
        assert len({span["spanId"] for span in trace}) == len(trace)
        ends = [int(span["endTimeUnixNano"]) for span in stages]
        assert ends == sorted(ends)
        assert ends[-1] <= int(root["endTimeUnixNano"])
    assert first[0]["traceId"] != second[0]["traceId"]
    assert [len(first[0][key]) for key in ("traceId", "spanId")] == [32, 16]
    times = {span["name"]: duration_ms(span) for span in first}
    assert times == pytest.approx(
        {"unit": 38, "open": 1, "encode": 2, "think": 10, "exchange": 3, "solve": 15, "decode": 5}
    )
    assert attributes(first[0])["session.id"] == "s"
    assert attributes(first[0])["unit.index"] == "0"
    assert attributes(first[0])["degradation"] == {"values": [{"stringValue": "fewer_steps"}]}
    assert attributes(first[5]) == {"engine_ms": 15.0, "steps": "2"}
    assert abs(int(first[0]["startTimeUnixNano"]) - time.time_ns()) < 60e9


def test_the_loop_traces_units_that_are_answered_and_keeps_nothing_of_the_others(
    make: Callable[..., DuplexBench], tmp_path: Path
) -> None:
    tracer = Tracer(tmp_path / "t.jsonl")
    bench = make(tracer=tracer)
    gate = bench.models.hold("perform", 0)
    lost = bench.unit("lost", 0)
    bench.settled()
    bench.duplex.abandon("over")  # a call that is under way then comes back to nobody
    gate.set()
    bench.settled()
    bench.duplex.table.closing = False
    within(bench.unit("a", 0, end=True).finished)
    bench.settled()
    tracer.close()
    (traced,) = read(tmp_path / "t.jsonl")
    assert [span["name"] for span in traced] == ["unit", "open", "encode", "think", "exchange", "solve", "decode"]
    assert len(lost.errors) == 1
    kept = [value for value in vars(tracer).values() if isinstance(value, dict | list)]
    assert not any(kept)


def test_a_restart_appends_and_a_full_file_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    for _ in range(2):
        tracer = Tracer(path)
        unit_of(tracer, "s", 0, 0, along=True)
        tracer.close()
    size = path.stat().st_size
    full = Tracer(path, max_bytes=size + 10)
    for unit in range(MAX_WAITING + 50):  # nobody takes them any more, and nobody waits
        unit_of(full, "s", unit, 0, along=True)
    assert full.lost > 0
    full.close()
    assert path.stat().st_size == size
    assert len(read(path)) == 2


def test_a_full_disk_ends_the_file_and_not_the_units(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracer = Tracer(tmp_path / "t.jsonl")
    tracer._file.close()
    tracer._file = open("/dev/full", "a")  # noqa: SIM115
    unit_of(tracer, "s", 0, 0, along=True)
    tracer._thread.join(5.0)
    unit_of(tracer, "s", 1, 0, along=True)
    tracer.close()
    assert "No space left on device; no more traces are written" in caplog.text
