"""loadtest.png: four views of a run, so that a bad one can be told from a good one at a glance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..report.figures import STAGES, percentiles
from ..report.timeline import COLOURS
from ..stream.units import UNIT_MS
from .driver import Run
from .search import TARGET, Probe
from .summary import user_rows

GOOD, SO_SO, BAD, GREY = "#2b7a4b", "#c78a1b", "#b3392f", "#5b6770"
DEADLINE = {"color": BAD, "linestyle": "--", "linewidth": 1}


def draw(run: Run, path: Path) -> None:
    """Response over time, its distribution, stages, and the share on time of each user."""
    figure = Figure(figsize=(13, 8.5), layout="constrained", dpi=110)
    axes = figure.subplots(2, 2)
    _over_time(axes[0][0], run)
    _distribution(axes[0][1], run)
    _stages(axes[1][0], run)
    _users(axes[1][1], run)
    title = f"{run.plan.sessions} sessions, {run.plan.seconds:g} s each: {run.on_time_share:.2%} of {run.planned} units"
    colour = GOOD if run.on_time_share >= TARGET else BAD
    figure.suptitle(f"{title} on time", fontsize=14, fontweight="bold", color=colour)
    figure.savefig(path)


def draw_capacity(probes: list[Probe], path: Path) -> None:
    """Share on time and p99 over the number of sessions."""
    figure = Figure(figsize=(8, 4.5), layout="constrained", dpi=110)
    axes = figure.subplots()
    best = {probe.sessions: probe.share * 100 for probe in sorted(probes, key=lambda probe: probe.share)}
    axes.plot(sorted(best), [best[sessions] for sessions in sorted(best)], color=GREY, zorder=1)
    for probe in probes:
        at = (probe.sessions, probe.share * 100)
        axes.plot(*at, "o", color=GOOD if probe.held else BAD, zorder=2)
        note = f"{probe.refused} refused" if probe.refused else f"p99 {probe.p99_ms:.0f} ms" if probe.p99_ms else ""
        axes.annotate(note, at, (4, -12), textcoords="offset points", fontsize=8)
    axes.axhline(TARGET * 100, **DEADLINE)
    axes.set(ylim=(min(90.0, min(axes.get_ylim())), 101))
    _label(axes, "units on time by number of sessions", "sessions", "units on time, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.12)
    figure.savefig(path)


def _label(axes: Axes, title: str, x: str, y: str = "") -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set(xlabel=x, ylabel=y)


def _over_time(axes: Axes, run: Run) -> None:
    units = [unit for user in run.users for unit in user.answered()]
    _label(axes, "response, from the end of the user unit", "s", "ms")
    axes.axhline(UNIT_MS, **DEADLINE)
    if not units:
        return
    begin = min(user.start for user in run.users)
    at = np.array([unit.due - begin for unit in units])
    response = np.array([unit.response_ms for unit in units], dtype=float)
    axes.plot(at, response, ".", markersize=2, color=GREY, alpha=0.35)
    second = at.astype(int)
    for share, colour in ((50, GOOD), (95, SO_SO), (99, BAD)):
        values = [float(np.percentile(response[second == s], share)) for s in np.unique(second)]
        axes.plot(np.unique(second) + 0.5, values, color=colour, label=f"p{share}")
    axes.set_ylim(0, max(1.3 * UNIT_MS, float(np.percentile(response, 99.5)) * 1.15))
    axes.legend(frameon=False, ncols=3, loc="upper right")


def _distribution(axes: Axes, run: Run) -> None:
    _label(axes, "share of units answered within ..", "ms", "% of the units that were due")
    axes.axvline(UNIT_MS, **DEADLINE)
    for label, values, colour, style in (
        ("from the due time", [u.response_ms for u in run.judged()], GOOD, "-"),
        ("from the sending", [u.service_ms for u in run.judged()], GREY, ":"),
    ):
        known = np.sort([value for value in values if value is not None])
        share = np.arange(1, len(known) + 1) / max(1, run.planned) * 100
        axes.step(known, share, where="post", label=label, color=colour, linestyle=style)
    axes.set(ylim=(0, 101), xlim=(0, max(2 * UNIT_MS, axes.get_xlim()[1] if run.on_time_share < TARGET else 0)))
    axes.legend(frameon=False, loc="lower right")


def _stages(axes: Axes, run: Run) -> None:
    _label(axes, "where the time goes (server)", "ms")
    units = [unit for unit in run.judged() if unit.received is not None]
    for y, stage in enumerate(STAGES):
        found = percentiles(unit.stages.get(stage, 0.0) for unit in units)
        if found is None:
            continue
        axes.barh(y, found["p50"], color=COLOURS[stage], height=0.6)
        axes.plot([found["p50"], found["p95"], found["p99"]], [y] * 3, "|-", color=GREY, linewidth=1, markersize=10)
        text = f"{found['p50']:.1f}  (p95 {found['p95']:.1f}, p99 {found['p99']:.1f})"
        axes.annotate(text, (found["p99"], y), (6, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(STAGES)), STAGES)
    axes.invert_yaxis()
    axes.set_xlim(0, axes.get_xlim()[1] * 1.45)


def _users(axes: Axes, run: Run) -> None:
    _label(axes, "units on time by user", "user", "%")
    rows = user_rows(run)
    colours = [BAD if row["error"] or row["on_time"] < TARGET else GOOD for row in rows]
    axes.bar(range(len(rows)), [row["on_time"] * 100 for row in rows], color=colours, width=0.8)
    axes.axhline(TARGET * 100, **DEADLINE)
    axes.set(ylim=(0, 105))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
