"""Both tools' figures side by side, and why they differ."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from client.loadtest.driver import Run
from client.perf.analyzer import Measurement, Request
from client.report.figures import percentiles
from client.stream.units import UNIT_SECONDS


@dataclass(frozen=True)
class Row:
    """One tool at one number of streams. Times are ms; `clock`: from when a unit's latency counts."""

    streams: int
    tool: str
    clock: str
    units: int
    rate: float  # units sent a second
    p50: float
    p95: float
    p99: float
    in_time: float  # share within 160 ms

    @classmethod
    def of(cls, streams: int, tool: str, clock: str, rate: float, times: Sequence[float], units: int) -> Row:
        figures = percentiles(times) or {"p50": float("nan"), "p95": float("nan"), "p99": float("nan")}
        share = sum(ms <= UNIT_SECONDS * 1e3 for ms in times) / units if units else 0.0
        p50, p95, p99 = (round(figures[name], 1) for name in ("p50", "p95", "p99"))
        return cls(streams, tool, clock, units, round(rate, 2), p50, p95, p99, round(share, 4))


def rows(measured: Measurement, run: Run) -> list[Row]:
    """Three rows: perf_analyzer, and the driver by both clocks."""
    times = [r.latency_ms for r in measured.requests if r.latency_ms is not None]
    judged = run.judged()
    sent = sorted(unit.sent for unit in judged if unit.sent is not None)
    rate = (len(sent) - 1) / (sent[-1] - sent[0]) if len(sent) > 1 else 0.0
    service = [unit.service_ms for unit in judged if unit.service_ms is not None]
    response = [unit.response_ms for unit in judged if unit.response_ms is not None]
    n = measured.streams
    return [
        Row.of(n, "perf_analyzer", "sending", measured.rate, times, len(measured.requests)),
        Row.of(n, "open loop", "sending", rate, service, run.planned),
        Row.of(n, "open loop", "due time", rate, response, run.planned),
    ]


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


def reasons(table: Sequence[Row], delayed: dict[int, float]) -> list[str]:
    """Sentences, with the figures of this run."""
    out = [
        "perf_analyzer counts from the moment it sends, the open loop from the moment the unit was complete. As long "
        "as everything is on time the two clocks agree; a unit that had to wait for the one before it is short by that "
        "wait in the first and not in the second."
    ]
    for n, share in delayed.items():
        wanted = n / UNIT_SECONDS
        rate = next(row.rate for row in table if row.streams == n and row.tool == "perf_analyzer")
        if share > 0:
            out.append(
                f"{n} streams: perf_analyzer sent {share:.0%} of its requests later than planned ({rate:g} a second of "
                f"{wanted:g}): with one request a sequence under way it waits for the answer, and the schedule waits "
                "with it (coordinated omission). The open loop's due times never move."
            )
    out.append(
        "perf_analyzer sends at equal distances (160/N ms), so its streams meet as rarely as they can; the users of "
        "the open loop have uneven phases, as people do, and find each other's units in the queue more often."
    )
    out.append(
        "perf_analyzer is C++, shares connections between streams and does not read the answers; the open loop is "
        "Python with a connection a user, decodes every answer, and has up to two units under way, as the protocol "
        "allows."
    )
    return out


def write(
    table: Sequence[Row], delayed: dict[int, float], folder: Path, facts: dict[str, Any]
) -> tuple[Path, dict[str, Any]]:
    """comparison.csv and comparison.md; returns the latter's path and what belongs into summary.json."""
    with (folder / "comparison.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(Row.__annotations__))
        writer.writeheader()
        writer.writerows(asdict(row) for row in table)
    lines = [
        "| streams | tool | counted from | units/s (wanted) | p50 ms | p95 ms | p99 ms | within 160 ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.streams} | {row.tool} | {row.clock} | {row.rate:.1f} ({row.streams / UNIT_SECONDS:g}) "
        f"| {row.p50:.1f} | {row.p95:.1f} | {row.p99:.1f} | {row.in_time:.1%} |"
        for row in table
    ]
    why = reasons(table, delayed)
    page = folder / "comparison.md"
    page.write_text("\n".join([*lines, "", "Where they differ:", "", *(f"- {reason}" for reason in why), ""]))
    return page, {**facts, "table": [asdict(row) for row in table], "delayed": delayed, "reasons": why}
