"""Both tools' figures side by side, and why they differ."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..loadtest.driver import Run
from ..report.figures import percentiles
from ..stream.units import UNIT_MS
from .analyzer import Measurement, Request

COLUMNS: tuple[str, ...] = (
    "streams",
    "tool",
    "counted from",
    "units",
    "units/s",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    "within 160 ms",
    "late",
)
WHY = f"""
`late` is the share of requests that perf_analyzer sent later than planned: with one request a sequence under way it
waits for the answer, and its schedule waits with it (coordinated omission). The open loop's due times never move.

Where they differ:

- perf_analyzer counts from the moment it sends, the open loop from the moment the unit was complete. As long as
  everything is on time the two clocks agree; a unit that had to wait for the one before it is short by that wait.
- perf_analyzer sends at equal distances ({UNIT_MS}/N ms), so its streams meet as rarely as they can; the users of the
  open loop have uneven phases, as people do, and find each other's units in the queue more often.
- perf_analyzer is C++, shares connections between streams and does not read the answers; the open loop is Python with a
  connection a user, decodes every answer, and has up to two units under way, as the protocol allows.
"""

Row = dict[str, Any]


def rows(measured: Measurement, run: Run) -> list[Row]:
    """Three rows: perf_analyzer, and the driver by both clocks."""
    requests, judged = measured.requests, run.judged()
    sent = [unit.sent for unit in judged if unit.sent is not None]
    theirs = _row("perf_analyzer", "sending", [r.sent for r in requests], [r.latency_ms for r in requests])
    found = [
        {**theirs, "late": round(measured.delayed, 4)},
        _row("open loop", "sending", sent, [unit.service_ms for unit in judged], run.planned),
        _row("open loop", "due time", sent, [unit.response_ms for unit in judged], run.planned),
    ]
    return [{"streams": measured.streams, **row} for row in found]


def _row(tool: str, clock: str, sent: Sequence[float], times: Sequence[float | None], due: int | None = None) -> Row:
    known = [ms for ms in times if ms is not None]
    found = percentiles(known) or {}
    span = max(sent) - min(sent) if sent else 0.0
    due = len(times) if due is None else due
    return {
        "tool": tool,
        "counted from": clock,
        "units": due,
        "units/s": round((len(sent) - 1) / span, 2) if span else 0.0,
        **{f"{name} ms": round(found[name], 1) if found else None for name in ("p50", "p95", "p99")},
        "within 160 ms": round(sum(ms <= UNIT_MS for ms in known) / due, 4) if due else 0.0,
        "late": None,
    }


def faults(requests: Sequence[Request], units: int) -> list[str]:
    """What is wrong with the sequences that perf_analyzer drove; empty if it really drove them."""
    wrong: list[str] = []
    sequences: dict[int, list[Request]] = {}
    for request in requests:
        sequences.setdefault(request.sequence, []).append(request)
    for key, members in sequences.items():
        indices = [request.unit for request in members]
        if indices != list(range(len(indices))) or len(indices) > units:
            wrong.append(f"sequence {key}: expected units 0 to {units - 1} in order, got {indices[:12]}")
        silent = [r.unit for r in members if r.answered is None or r.answer_unit != r.unit]
        if silent:
            wrong.append(f"sequence {key}: units {silent[:12]} have no answer of their own")
    return wrong


def write(table: Sequence[Row], folder: Path) -> str:
    """comparison.csv, and comparison.md, which is returned."""
    with (folder / "comparison.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(table)
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join('' if row[c] is None else str(row[c]) for c in COLUMNS)} |" for row in table]
    page = "\n".join([*lines, WHY])
    (folder / "comparison.md").write_text(page, encoding="utf-8")
    return page
