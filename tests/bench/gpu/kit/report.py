"""`make gpu-report`: a day's results folder -> CSV, figures and the rows for the README.

    python report.py RESULTS [--out tests/bench/results]

Without a RESULTS folder every row says "not yet run". Results of a smoke run are refused: they are no measurements.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

from table import read, rows, stages

sys.path.append(str(Path(__file__).resolve().parents[1]))  # of bench_gpu.py
from gpu_goals import goals

ROOT = Path(__file__).resolve().parents[4]
FILES = ("gpu_steps.csv", "gpu_units.csv", "gpu_goals.csv", "anchors.csv")
NOT_RUN = "not yet run"
PRESETS = ("v0.1-0.6b", "v0.1-1.7b", "v0.1-8b", "v0.2-8b")


def write(path: Path, found: list[dict[str, Any]]) -> None:
    if not found:
        return
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in found for name in row)))
        writer.writeheader()
        writer.writerows(found)


def csv_files(results: Path, out: Path) -> None:
    """One CSV of each kind for all presets, one of facts (`part`, `name`, `value`) for what has no table."""
    out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        write(out / (name if name.startswith("gpu_") else f"gpu_{name}"), rows(results, name))
    facts = [
        {"part": part, "name": name, "value": value if isinstance(value, str) else json.dumps(value)}
        for part in ("machine", "overlap", "served", "rtx")
        for name, value in read(results / part / f"{part}.json").items()
    ]
    write(out / "gpu_facts.csv", facts)
    write(out / "gpu_stages.csv", stages(results))


def readme(results: Path) -> str:
    """A row for each preset and goal, Markdown."""
    units = {row["preset"]: row for row in rows(results, "gpu_units.csv") if row.get("precision") != "fp8"}
    machine, overlap = read(results / "machine" / "machine.json"), read(results / "overlap" / "overlap.json")
    served = read(results / "served" / "served.json")
    card = machine.get("gpu") or "no GPU"
    lines = [f"One {card}, bf16, random weights, 8 s of history, two fed slots, four solver steps.", ""]
    lines += ["| preset | unit, ms | at least, ms | sessions on time | the ceilings allow | plain PyTorch |"]
    lines += ["|---|---|---|---|---|---|"]
    columns = ("unit_ms", "unit_floor_ms", "sessions", "sessions_floor", "plain_sessions")
    for preset in PRESETS:
        values = [units.get(preset, {}).get(column) or NOT_RUN for column in columns]
        lines.append(f"| `{preset}` | {' | '.join(values)} |")
    lines += ["", "| goal | wanted | got | met |", "|---|---|---|---|"]
    lines += [f"| {row['name']} | {row['goal']} | {row['got']} | {row['met']} |" for row in goal_rows(results)]
    streams, processes = (overlap.get(name, {}).get("overlap") for name in ("two streams", "two processes"))
    memory = overlap.get("one process gib"), overlap.get("second process gib")
    lines.append(f"| thinker and performer overlap, one process | >= 1.3 | {_or(streams)} | {_met(streams, 1.3)} |")
    lines.append(f"| the same in two processes | for comparison | {_or(processes)} | |")
    lines.append(f"| memory of one process, and of a second, GiB | | {_or(memory[0])}, {_or(memory[1])} | |")
    fp8 = fp8_gain(rows(results, "gpu_steps.csv"))
    lines.append(f"| `v0.1-8b` perform, FP8 against bf16 | >= 1.5 | {_or(fp8)} | {_met(fp8, 1.5)} |")
    pair = served.get("predicted sessions"), served.get("served sessions")
    agree = served.get("agree", NOT_RUN)
    lines.append(f"| sessions: simulated, served for 20 s | within one | {_or(pair[0])}, {_or(pair[1])} | {agree} |")
    failed = [f"{s['stage']} ({s['note'] or s['code']})" for s in stages(results) if s["code"] != 0]
    lines += ["", f"Stages that failed: {', '.join(failed) or ('none' if stages(results) else NOT_RUN)}."]
    return "\n".join(lines) + "\n"


def goal_rows(results: Path) -> list[dict[str, str]]:
    """Every goal of every preset: as measured by the stage that did."""

    def place(row: dict[str, str]) -> tuple[str, ...]:
        return row["name"], *row["goal"].split()[:3]  # what follows was measured

    wanted = [vars(goal) | {"got": NOT_RUN, "met": NOT_RUN} for goal in goals({name: {} for name in PRESETS}, [])]
    measured = [row for row in rows(results, "gpu_goals.csv") if row["met"]]
    return list(({place(row): row for row in wanted} | {place(row): row for row in measured}).values())


def fp8_gain(steps: list[dict[str, str]]) -> float | None:
    """Time of a solver step of v0.1-8b in bf16 over that in FP8, batch 1; None if one was not measured."""
    own = [r for r in steps if (r["preset"], r["step"], r["batch"]) == ("v0.1-8b", "perform", "1")]
    ms = {r["precision"]: float(r["device_ms"]) for r in own}
    return round(ms["bfloat16"] / ms["fp8"], 2) if {"bfloat16", "fp8"} <= set(ms) else None


def _or(value: Any) -> Any:
    return NOT_RUN if value is None else value


def _met(value: float | None, goal: float) -> str:
    return NOT_RUN if value is None else str(value >= goal)


def figure(results: Path, out: Path) -> None:
    """Milliseconds of each step at batch 1 beside its floor, a panel a preset."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    steps = [row for row in rows(results, "gpu_steps.csv") if (row["batch"], row["precision"]) == ("1", "bfloat16")]
    presets = list(dict.fromkeys(row["preset"] for row in steps))
    if not presets:
        return
    drawing, panels = pyplot.subplots(1, len(presets), figsize=(4 * len(presets), 3.2), squeeze=False)
    for panel, preset in zip(panels[0], presets, strict=True):
        own = [row for row in steps if row["preset"] == preset]
        places = range(len(own))
        panel.bar([p - 0.2 for p in places], [float(r["ms"]) for r in own], 0.4, label="measured")
        panel.bar([p + 0.2 for p in places], [float(r["floor_ms"]) for r in own], 0.4, label="at least")
        panel.set_xticks(list(places), [r["step"] for r in own], rotation=30)
        panel.set_title(preset)
        panel.set_ylabel("ms, batch 1")
        panel.legend()
    drawing.tight_layout()
    drawing.savefig(out / "gpu_steps.svg", metadata={"Date": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "tests/bench/results")
    args = parser.parse_args()
    if read(args.results / "stages.json").get("smoke"):
        print(f"{args.results}: expected the results of a GPU, found those of a smoke run: no measurements")
        return 1
    if stages(args.results):
        csv_files(args.results, args.out)
        figure(args.results, args.out)
    print(readme(args.results), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
