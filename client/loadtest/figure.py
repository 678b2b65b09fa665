"""loadtest.png: four views of a run, so that a bad one can be told from a good one at a glance."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from client.loadtest.driver import Run
from client.loadtest.search import TARGET, Probe
from client.loadtest.summary import user_rows
from client.report.figures import STAGES, percentiles
from client.stream.units import UNIT_MS

GOOD, BAD, GREY = "#2b7a4b", "#b3392f", "#5b6770"
COLOURS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677")
TITLE = {"loc": "left", "fontsize": 11, "fontweight": "bold"}


def draw(run: Run, path: Path) -> None:
    """Response over time, its distribution, stages, and the share on time of each user."""
    figure, axes = plt.subplots(2, 2, figsize=(13, 8.5), layout="constrained")
    _over_time(axes[0][0], run)
    _distribution(axes[0][1], run)
    _stages(axes[1][0], run)
    _users(axes[1][1], run)
    plan = run.plan
    figure.suptitle(
        f"{plan.sessions} sessions, {plan.seconds:g} s each: {run.on_time_share:.2%} of {run.planned} units on time",
        fontsize=14,
        fontweight="bold",
        color=GOOD if run.on_time_share >= TARGET else BAD,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_capacity(probes: list[Probe], path: Path) -> None:
    """Share on time and p99 over the number of sessions."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    ordered = sorted(probes, key=lambda probe: probe.sessions)
    best = {probe.sessions: probe.share * 100 for probe in sorted(probes, key=lambda probe: probe.share)}
    axes.plot(sorted(best), [best[sessions] for sessions in sorted(best)], color=GREY, zorder=1)
    for probe in ordered:
        axes.plot(probe.sessions, probe.share * 100, "o", color=GOOD if probe.held else BAD, zorder=2)
    for probe in ordered:
        note = f"{probe.refused} refused" if probe.refused else f"p99 {probe.p99_ms:.0f} ms" if probe.p99_ms else ""
        axes.annotate(note, (probe.sessions, probe.share * 100), (4, -12), textcoords="offset points", fontsize=8)
    axes.axhline(TARGET * 100, color=BAD, linestyle="--", linewidth=1)
    axes.set(xlabel="sessions", ylabel="units on time, %", ylim=(min(90.0, min(axes.get_ylim())), 101))
    axes.set_title("units on time by number of sessions", **TITLE)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.12)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _over_time(axes: Axes, run: Run) -> None:
    units = [unit for user in run.users for unit in user.answered()]
    axes.set_title("response, from the end of the user unit", **TITLE)
    axes.set(xlabel="s", ylabel="ms")
    axes.axhline(UNIT_MS, color=BAD, linestyle="--", linewidth=1)
    if not units:
        return
    begin = min(user.start for user in run.users)
    at = np.array([unit.due - begin for unit in units])
    response = np.array([unit.response_ms for unit in units], dtype=float)
    axes.plot(at, response, ".", markersize=2, color=GREY, alpha=0.35)
    bins = np.arange(0, at.max() + 1)
    place = np.digitize(at, bins)
    for share, colour in ((50, GOOD), (95, "#c78a1b"), (99, BAD)):
        seen = sorted(set(place))
        values = [float(np.percentile(response[place == b], share)) for b in seen]
        axes.plot([bins[b - 1] + 0.5 for b in seen], values, color=colour, label=f"p{share}")
    axes.set_ylim(0, max(1.3 * UNIT_MS, float(np.percentile(response, 99.5)) * 1.15))
    axes.legend(frameon=False, ncols=3, loc="upper right")


def _distribution(axes: Axes, run: Run) -> None:
    axes.set_title("share of units answered within ..", **TITLE)
    axes.set(xlabel="ms", ylabel="% of the units that were due", ylim=(0, 101))
    axes.axvline(UNIT_MS, color=BAD, linestyle="--", linewidth=1)
    due = max(1, run.planned)
    for label, values, colour, style in (
        ("from the due time", [u.response_ms for u in run.judged()], GOOD, "-"),
        ("from the sending", [u.service_ms for u in run.judged()], GREY, ":"),
    ):
        known = np.sort([value for value in values if value is not None])
        axes.step(
            known, np.arange(1, len(known) + 1) / due * 100, where="post", label=label, color=colour, linestyle=style
        )
    axes.set_xlim(0, max(2 * UNIT_MS, axes.get_xlim()[1] if run.on_time_share < TARGET else 0))
    axes.legend(frameon=False, loc="lower right")


def _stages(axes: Axes, run: Run) -> None:
    axes.set_title("where the time goes (server)", **TITLE)
    axes.set(xlabel="ms")
    units = [unit for unit in run.judged() if unit.received is not None]
    rows = [(stage, percentiles(unit.stages.get(stage, 0.0) for unit in units)) for stage in STAGES]
    for y, (_, figures) in enumerate(rows):
        if figures is None:
            continue
        axes.barh(y, figures["p50"], color=COLOURS[y], height=0.6)
        axes.plot([figures["p50"], figures["p99"]], [y, y], color=GREY, linewidth=1)
        axes.plot(figures["p95"], y, "|", color=GREY, markersize=10)
        axes.plot(figures["p99"], y, "|", color=GREY, markersize=10)
        axes.annotate(
            f"{figures['p50']:.1f}  (p95 {figures['p95']:.1f}, p99 {figures['p99']:.1f})",
            (figures["p99"], y),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(rows)), [stage for stage, _ in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, axes.get_xlim()[1] * 1.45)


def _users(axes: Axes, run: Run) -> None:
    axes.set_title("units on time by user", **TITLE)
    rows = user_rows(run)
    shares = [row["on_time"] * 100 for row in rows]
    colours = [BAD if row["error"] or row["on_time"] < TARGET else GOOD for row in rows]
    axes.bar(range(len(rows)), shares, color=colours, width=0.8)
    axes.axhline(TARGET * 100, color=BAD, linestyle="--", linewidth=1)
    axes.set(xlabel="user", ylabel="%", ylim=(0, 105))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
