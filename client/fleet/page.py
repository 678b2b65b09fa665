"""What a run of a fleet leaves behind: fleet.json, fleet.png, and a page with both."""

from __future__ import annotations

from collections import Counter
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..loadtest.files import PAGE, embedded, table_of
from ..report.figures import percentiles
from ..report.figures import write as write_json
from .load import Story, Visits

COLOURS = ("#2b6f9e", "#c78a1b", "#2b7a4b", "#7a4b8c")


def figures(story: Story, visits: Visits) -> dict[str, Any]:
    """Counts over all visitors. A unit whose answer was lost, or that was never answered, is not on time."""
    users = story.visitors
    units = [unit for user in users for unit in user.log.units]
    news = [said for user in users for said in user.news]
    return {
        "seconds": visits.seconds,
        "visitors": len(users),
        "talked to the end": sum(user.error is None for user in users),
        "refused or lost": Counter(str(user.error)[:120] for user in users if user.error is not None),
        "sessions that began anew elsewhere": sum(said.anew for said in news),
        "seconds until they were served again": percentiles(said.seconds for said in news if said.anew),
        "connections taken up again": sum(not said.anew for said in news),
        "units": len(units),
        "units on time": sum(unit.on_time for unit in units) / len(units) if units else None,
        "units unanswered": sum(unit.received is None for unit in units),
        "response ms": percentiles(unit.response_ms for unit in units if unit.response_ms is not None),
        "events": [(round(at, 1), what) for at, what in story.events],
    }


def write(story: Story, visits: Visits, more: dict[str, Any], folder: Path) -> Path:
    """Writes everything into `folder`; returns the page."""
    found = {**figures(story, visits), **more}
    write_json(found, folder / "fleet.json")
    _draw(story, folder / "fleet.png")
    rows = [(name, _shown(value)) for name, value in found.items() if name != "events"]
    events = [(f"{at:.1f}", what) for at, what in found["events"]]
    body = [embedded(folder / "fleet.png"), table_of(("", ""), rows, "Figures"), table_of(("s", ""), events, "Events")]
    lead = f"{len(story.visitors)} visitors in {visits.seconds:g} s over HAProxy, on one machine; open loop."
    page = folder / "report.html"
    page.write_text(
        PAGE.substitute(
            title="A fleet of servers",
            lead=escape(lead),
            body="\n".join(body),
            note="A unit is on time within 160 ms of the moment it was complete. All servers share this machine.",
        )
    )
    return page


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_shown(each)}" for key, each in value.items()) or "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _draw(story: Story, path: Path) -> None:
    """Open sessions of each server, with its free places above them, and the share of units on time."""
    names = list(story.looks[0].rooms)
    figure = Figure(figsize=(10, 1.1 * len(names) + 1.8), layout="constrained", dpi=100)
    axes = figure.subplots(len(names) + 1, 1, sharex=True)
    at = [look.at for look in story.looks]
    for axis, name, colour in zip(axes, names, COLOURS, strict=False):
        rooms = [look.rooms[name] or {} for look in story.looks]
        admitted = [room.get("admitted", 0) + room.get("reserved", 0) for room in rooms]
        free = [taken + room.get("free", 0) for taken, room in zip(admitted, rooms, strict=True)]
        axis.fill_between(at, free, step="post", color="#dfe5e8", label="free")
        axis.fill_between(at, admitted, step="post", color=colour, label="open sessions")
        axis.set(ylabel=name, ylim=(0, None))
    axes[0].legend(ncols=2, loc="upper right", fontsize=8)
    seconds: dict[int, list[bool]] = {}
    for user in story.visitors:
        for unit in user.log.units:
            seconds.setdefault(int(unit.due - story.began), []).append(unit.on_time)
    axes[-1].plot(sorted(seconds), [100 * sum(seconds[s]) / len(seconds[s]) for s in sorted(seconds)], color="#1c2429")
    axes[-1].set(ylabel="on time, %", xlabel="s", ylim=(0, 103))
    by_name = dict(zip(names, axes, strict=False))
    for number, (when, what) in enumerate(story.events):
        for axis in axes:
            axis.axvline(when, color="#b3392f", linewidth=1, linestyle=":")
        name, _, happened = what.partition(" ")
        by_name.get(name, axes[0]).annotate(
            happened, (when, 0.84 - 0.2 * (number % 4)), xytext=(4, 0), xycoords=("data", "axes fraction"),
            textcoords="offset points", fontsize=8, color="#8c2a22",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1},
        )  # fmt: skip
    figure.savefig(path)
