"""What a training run leaves for its reader: loss curves and one page of figures."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

_SMOOTH = 25  # steps
_PANELS = ("state", "text", "audio", "video")


def read_log(run: Path) -> dict[str, np.ndarray]:
    """Columns of log.csv. FileNotFoundError if the run has not begun."""
    names, *rows = csv.reader((run / "log.csv").read_text().splitlines())
    return dict(zip(names, np.array(rows, dtype=float).T, strict=True)) if rows else {}


def write_report(run: Path, figures: dict[str, float | None] | None = None) -> Path:
    """losses.png and report.md of a run; `figures` of a closed-loop rehearsal are added as a table."""
    log = read_log(run)
    if not log:
        raise ValueError(f"{run / 'log.csv'}: expected at least one step")
    _plot(log, run / "losses.png")
    state = json.loads((run / "state.json").read_text())
    warm_up = run / "warm_up.json"
    lines = [
        f"# Training run `{run.name}`",
        "",
        f"{int(log['step'][-1])} steps of {state['plan']['batch']} x {state['plan']['units']} units in "
        f"{log['seconds'][-1] / 60:.0f} minutes. Plan: `{json.dumps(state['plan'])}`",
        "",
        "| loss | first 25 steps | last 25 steps |",
        "|---|---|---|",
    ]
    lines += [f"| {n} | {log[n][:_SMOOTH].mean():.3f} | {log[n][-_SMOOTH:].mean():.4f} |" for n in ("total", *_PANELS)]
    if warm_up.exists():
        lines += ["", f"Codecs and eyes before joint training: `{warm_up.read_text().strip()}`"]
    if figures:
        lines += ["", "| closed loop, held out | |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in figures.items()]
    path = run / "report.md"
    path.write_text("\n".join(lines) + "\n")
    return path


def _plot(log: dict[str, np.ndarray], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(_PANELS), figsize=(13, 3))
    for axis, name in zip(axes, _PANELS, strict=True):
        width = min(_SMOOTH, len(log[name]))
        smooth = np.convolve(log[name], np.ones(width) / width, mode="valid")
        axis.semilogy(log["step"][width - 1 :], smooth, color="#3a6ea5")
        axis.set_title(name)
        axis.set_xlabel("step")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
