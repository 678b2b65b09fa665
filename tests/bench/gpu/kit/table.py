"""The short account of a day's results folder, and the rows that stages wrote. Python's own library only."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

STEP_COLUMNS = ("precision", "step", "batch", "ms", "device_ms", "floor_ms", "plain_ms", "share_matmul", "share_copy")


def rows(out: Path, name: str) -> list[dict[str, str]]:
    """The lines of `STAGE/name` of all stages, in the stages' order of time."""
    files = sorted(out.glob(f"*/{name}"), key=lambda file: file.stat().st_mtime)
    return [row for file in files for row in csv.DictReader(file.open())]


def read(file: Path) -> dict[str, Any]:
    """A stage's JSON; empty if it wrote none, or not all of it."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {}


def table(out: Path) -> str:
    """Stages, card, steps, units, goals, and how thinker and performer overlap."""
    lines = [f"{s['stage']:10} {s['code']!s:>5} {s['seconds']:>6} s {s['note']}" for s in stages(out)]
    machine = read(out / "machine" / "machine.json")
    lines += [
        f"   {name}: {machine[name]}" for name in ("card", "python", "torch", "triton", "numpy") if name in machine
    ]
    if steps := rows(out, "gpu_steps.csv"):
        lines.append("-- preset, " + ", ".join(STEP_COLUMNS))
        lines += ["   " + " ".join(f"{r[c][:9]:>9}" for c in ("preset", *STEP_COLUMNS)) for r in steps]
    lines += [f"-- unit {row}" for row in rows(out, "gpu_units.csv")]
    lines += [f"   {r['met']:5} {r['name']}: {r['got']} ({r['goal']})" for r in rows(out, "gpu_goals.csv") if r["met"]]
    for name in ("overlap", "served"):
        if found := read(out / name / f"{name}.json"):
            lines.append(f"-- {name} {json.dumps(found)}")
    for r in rows(out, "anchors.csv"):
        lines.append(
            f"   {r['what']:9} {r['variant']:44} x{r['batch']:>4} {r['ms']:>9} ms {r['tflops']:>6} {r['note']}"
        )
    return "\n".join(lines) + "\n"


def stages(out: Path) -> list[dict[str, Any]]:
    return read(out / "stages.json").get("stages", [])
