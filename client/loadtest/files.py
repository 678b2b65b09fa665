"""What a load test leaves behind: units.csv, loadtest.png, report.html, summary.json, and capacity.* after a search."""

from __future__ import annotations

import base64
import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from ..report.figures import STAGES
from ..report.figures import write as write_json
from .driver import Run
from .figure import draw, draw_capacity
from .search import Probe
from .summary import build, user_rows

COLUMNS = ("user", "unit", "judged", "due_s", "woke_s", "sent_s", "received_s", "response_ms", "service_ms", "on_time")
PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #1c2429 }
table { border-collapse: collapse; margin: 1rem 0 } caption { text-align: left; font-weight: 600 }
th, td { padding: .2rem .9rem .2rem 0; text-align: right; border-bottom: 1px solid #d5dbdf }
th:first-child, td:first-child { text-align: left } img { max-width: 100% } .note { color: #57636b }
</style>
<h1>$title</h1>
<p>$lead</p>
$body
<p class="note">$note</p>
</html>
""")


def write(run: Run, folder: Path, probes: Sequence[Probe] = (), capacity: int | None = None) -> dict[str, Any]:
    """Writes all files into `folder` and returns the summary. `capacity` and `probes`: of a search."""
    folder.mkdir(parents=True, exist_ok=True)
    summary = build(run)
    if capacity is not None:
        summary["capacity"] = {"sessions": capacity, "probes": [asdict(probe) for probe in probes]}
        _table(folder / "capacity.csv", ("sessions", "held", "share", "refused", "p99_ms"), map(asdict, probes))
        draw_capacity(list(probes), folder / "capacity.png")
    _table(folder / "units.csv", (*COLUMNS, "total_ms", *(f"{stage}_ms" for stage in STAGES), "left_out"), _units(run))
    draw(run, folder / "loadtest.png")
    write_json(summary, folder / "summary.json")
    (folder / "report.html").write_text(_page(run, summary, folder), encoding="utf-8")
    return summary


def _table(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def _units(run: Run) -> Iterable[dict[str, Any]]:
    """One row a unit that was due; times are seconds since the first user began."""
    begin = min(user.start for user in run.users)

    def since(moment: float | None) -> float | str:
        return "" if moment is None else round(moment - begin, 6)

    for user in run.users:
        for unit in user.units:
            yield {
                "user": user.number,
                "unit": unit.index,
                "judged": int(unit.index >= run.plan.warm_units),
                "due_s": since(unit.due),
                "woke_s": since(unit.woke),
                "sent_s": since(unit.sent),
                "received_s": since(unit.received),
                "response_ms": _round(unit.response_ms),
                "service_ms": _round(unit.service_ms),
                "on_time": int(unit.on_time),
                "total_ms": unit.stages.get("total", ""),
                **{f"{stage}_ms": unit.stages.get(stage, "") for stage in STAGES},
                "left_out": " ".join(unit.degradation),
            }


def _round(value: float | None) -> float | str:
    return "" if value is None else round(value, 3)


def _page(run: Run, summary: dict[str, Any], folder: Path) -> str:
    plan, sound, capacity = run.plan, summary["playout"], summary.get("capacity")
    times = {
        "response, from the due time": summary["ms"]["response"],
        "from the sending": summary["ms"]["service"],
        "in the server": summary["ms"]["total"],
        **{stage: summary["ms"][stage] for stage in STAGES},
        "gRPC and network": summary["ms"]["transport"],
        "first response": summary["first_response_ms"],
        "sent late by": summary["send_lateness_ms"],
        "driver late by": summary["driver_lateness_ms"],
        "AV skew": sound["av_skew_ms"],
    }
    marks = ("p50", "p95", "p99", "max")
    rows = [(name, *(f"{found[p]:.1f}" for p in marks)) for name, found in times.items() if found]
    body = [embedded(folder / "loadtest.png"), table_of(("ms", *marks), rows, "Times")]
    if capacity:
        probes = [
            (p["sessions"], "yes" if p["held"] else "no", f"{p['share']:.2%}", p["refused"], p["p99_ms"])
            for p in capacity["probes"]
        ]
        head = ("sessions", "held", "on time", "refused", "p99 ms")
        body += [embedded(folder / "capacity.png"), table_of(head, probes, "Probes, as they ran")]
    users = [
        (row["user"], f"{row['on_time']:.2%}", row["p50"], row["p99"], row["underruns"], row["error"])
        for row in user_rows(run)
    ]
    body.append(table_of(("user", "on time", "p50 ms", "p99 ms", "underruns", "error"), users, "Users"))
    lead = (
        f"{summary['on_time']['share']:.2%} of {summary['units']['due']} units on time "
        f"({summary['sessions']['without_error']} of {plan.sessions} sessions without an error). "
        f"Playout buffer of {sound['buffer_ms']:g} ms: {sound['underruns']} underruns, "
        f"{sound['lost_sound_ms']:g} ms of sound lost. Errors: {summary['errors'] or 'none'}."
    )
    note = (
        f"{summary['on_time']['meaning']}. The first {plan.warm_up:g} s of every user are not judged. "
        f"{summary['started']}, {plan.url}, model {summary['model']}, weights: {summary['weights']}, "
        f"{summary['machine']['cpus']} CPUs, load {summary['machine']['load_average']}."
    )
    if not summary["driver_fit"]:
        note += " The driver itself was late: the figures say less about the server than about this machine."
    what = f"{capacity['sessions']} sessions on time" if capacity else f"{plan.sessions} sessions, {plan.seconds:g} s"
    return PAGE.substitute(
        title=escape(f"Load test: {what}"), lead=escape(lead), body="\n".join(body), note=escape(note)
    )


def table_of(head: Sequence[str], rows: Iterable[Sequence[object]], caption: str) -> str:
    lines = [f"<table><caption>{escape(caption)}</caption>"]
    lines.append("<tr>" + "".join(f"<th>{escape(name)}</th>" for name in head) + "</tr>")
    for row in rows:
        cells = ("" if cell is None else escape(str(cell)) for cell in row)
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return "\n".join([*lines, "</table>"])


def embedded(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<p><img alt="{escape(path.stem)}" src="data:image/png;base64,{data}"></p>'
