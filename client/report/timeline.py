"""timeline.png: one picture of a conversation. Was it on time, where did the time go, who spoke when, what was said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..media.loudness import Decibel
from ..stream.units import FPS, UNIT_MS, UNIT_SECONDS
from ..talk.conversation import Conversation, UnitRecord
from ..talk.script import Mark
from .captions import Turn, dialogue, printable
from .figures import STAGES, on_time_share, percentiles

COLOURS = {
    "queue": "#a8b3bf",
    "perceive": "#5b8ff9",
    "think": "#f6a93b",
    "perform": "#3fb68b",
    "render": "#a678de",
    "other": "#dfe4ea",  # client, wire and whatever the server did not name
}
USER, AGENT, LATE, INK, SOFT = "#2f7fd8", "#e08a1e", "#d93a3a", "#1f2933", "#7b8794"
STATES = {"listen": "#eef2f6", "speak": "#fde5c3"}
STATE_SPARE = ("#dcefe4", "#e9e0f7", "#f8dede", "#fff6cc")
INCHES_PER_UNIT, MIN_INCHES, MAX_INCHES = 0.085, 12.0, 30.0
LEFT, RIGHT = 0.85, 0.3  # inches beside the axes
INCHES_PER_LETTER = 0.075  # at 9 or 10 points
CEILING = 2.0  # the axis ends at this multiple of the deadline; taller bars get their number written on
ROWS = 4  # lines of text above the bars
MARK_ROWS = 3  # lines of marks below the voices


def draw(talk: Conversation, path: Path, *, weights: str, marks: Sequence[Mark] = ()) -> None:
    """Writes the picture. Works for any number of units sent, including none."""
    units = talk.units
    width = float(np.clip(len(units) * INCHES_PER_UNIT, MIN_INCHES, MAX_INCHES))
    figure = Figure(figsize=(width, 7.2), dpi=110, facecolor="white")
    grid = figure.add_gridspec(
        5, 1, height_ratios=(1.0, 3.4, 0.75, 0.75, 0.75 if marks else 0.001), hspace=0.09, left=LEFT / width,
        right=1 - RIGHT / width, top=0.87, bottom=0.09,
    )  # fmt: skip
    text, bars, user, agent, marked = (figure.add_subplot(cell) for cell in grid)
    end = max(len(units), 1) * UNIT_SECONDS
    for axes in (text, bars, user, agent, marked):
        axes.set_xlim(0, end)
        for side in ("top", "right", "left", "bottom"):
            axes.spines[side].set_visible(axes is bars and side in ("left", "bottom"))
            axes.spines[side].set_color("#cbd2d9")
        axes.tick_params(colors=SOFT, labelsize=9, length=0, labelbottom=axes is marked)
    _title(figure, talk, weights, width)
    legend = _bars(bars, units)
    if legend:
        figure.legend(handles=[Patch(alpha=0, label="median ms"), *legend], loc="upper right", ncols=len(legend) + 1,
                      bbox_to_anchor=(1 - 0.2 / width, 0.985), frameon=False, fontsize=9, handlelength=1.0,
                      handleheight=1.0, columnspacing=1.1, labelcolor=INK)  # fmt: skip
    _text(text, talk, width)
    spoken, answered = talk.levels()
    _voice(user, "user", spoken, USER)
    _states(agent, marked, units)
    _voice(agent, "agent", answered, AGENT)
    _marks(marked, (user, agent), marks, width)
    marked.set_xlabel("seconds of conversation", color=SOFT, fontsize=9)
    figure.savefig(path)


def _title(figure: Figure, talk: Conversation, weights: str, width: float) -> None:
    left = LEFT / width
    head = f"{len(talk.units)} units, {on_time_share(talk.units):.1%} on time"
    figure.text(left, 0.955, head, fontsize=17, fontweight="bold", color=INK, va="center")
    figures = percentiles(u.response_ms for u in talk.units if u.response_ms is not None)
    parts = [f"{talk.model} at {talk.url}"]
    if figures:
        parts.insert(0, f"response p50 {figures['p50']:.0f}   p95 {figures['p95']:.0f}   p99 {figures['p99']:.0f} ms")
    if talk.errors:
        parts.append(f"{len(talk.errors)} errors: {printable(str(talk.errors[-1]))[:90]}")
    line = "    ".join([*parts, f"weights: {printable(weights)}"])
    line = _cut(line, int((width - LEFT - RIGHT) / INCHES_PER_LETTER))
    figure.text(left, 0.915, line, fontsize=10, color=LATE if talk.errors else SOFT, va="center")


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 1] + "…"


def _bars(axes: Axes, units: Sequence[UnitRecord]) -> list[Patch]:
    """What each response was made of, stacked, up to what the client measured. Returns the legend."""
    answered = np.array([u.response_ms is not None for u in units], bool)
    response = np.array([u.response_ms or 0.0 for u in units])
    stack = [(name, np.array([u.stages.get(name, 0.0) for u in units])) for name in STAGES]
    stack.append(("other", np.maximum(response - sum(height for _, height in stack), 0.0)))
    base = np.zeros(len(units))
    handles: list[Patch] = []
    for name, height in stack if answered.any() else []:
        _area(axes, base, base + height, color=COLOURS[name], zorder=2)
        handles.append(Patch(color=COLOURS[name], label=f"{name} {np.median(height[answered]):.1f}"))
        base = base + height
    top = float(np.clip(max(response.max(initial=0), base.max(initial=0)) * 1.1, UNIT_MS * 1.25, UNIT_MS * CEILING))
    axes.axhline(UNIT_MS, color=LATE, linewidth=1.2, linestyle=(0, (5, 3)), zorder=3)
    axes.text(0.997, UNIT_MS + top * 0.012, "deadline: the next unit is complete", color=LATE, fontsize=9, va="bottom",
              ha="right", transform=axes.get_yaxis_transform())  # fmt: skip
    _area(axes, 0 * base, ~answered, color=LATE, alpha=0.16, zorder=1, transform=axes.get_xaxis_transform())
    late = np.flatnonzero(response > UNIT_MS)
    axes.plot(
        (late + 0.5) * UNIT_SECONDS, np.minimum(response[late], top * 0.97), "v", color=LATE, markersize=5, zorder=4
    )
    for run in np.split(late, np.flatnonzero(np.diff(late) > 1) + 1) if late.size else []:
        if (worst := response[run].max()) > top:
            x = (run[0] + run[-1] + 1) / 2 * UNIT_SECONDS
            axes.text(x, top * 0.94, f"{worst:.0f} ms", color=LATE, fontsize=9, ha="center", va="top", zorder=5)
    axes.set_ylim(0, top)
    axes.set_ylabel("ms per unit", color=SOFT, fontsize=9)
    axes.grid(axis="y", color="#e6eaee", linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    return handles


def _area(axes: Axes, low: np.ndarray, high: np.ndarray, **style: Any) -> None:
    """A bar a unit, drawn as one area: an hour of single bars would be a hundred thousand objects."""
    at = np.arange(len(high) + 1) * UNIT_SECONDS
    axes.fill_between(at, np.append(low, low[-1:]), np.append(high, high[-1:]), step="post", linewidth=0, **style)


def _text(axes: Axes, talk: Conversation, width: float) -> None:
    """What was written, at the time of writing; what finds no free line is left out."""
    axes.set_ylabel("text", color=SOFT, fontsize=9, rotation=0, ha="right", va="center")
    known = [(int(c.start / UNIT_SECONDS), c.text) for c in talk.source.captions]  # better than what was heard
    said = [(Turn(unit, unit, words), USER) for unit, words in known if unit < len(talk.units)]
    said += [
        (turn, AGENT if who == "agent" else USER)
        for who, turn in dialogue(talk.units)
        if who == "agent" or not talk.source.captions
    ]
    lines = _Lines(axes, ROWS, width)
    for turn, colour in sorted(said, key=lambda pair: pair[0].first):
        text = printable(turn.text).strip()
        if text and min(lines.free) <= turn.first * UNIT_SECONDS:
            lines.write(turn.first * UNIT_SECONDS, _cut(text, 60), colour)


class _Lines:
    """Lines of text in `axes`: each piece begins at its moment, or ends with them, on the first line that is free."""

    def __init__(self, axes: Axes, count: int, width: float) -> None:
        axes.set_ylim(count, 0)
        axes.set_yticks([])
        self.free = [0.0] * count
        self._axes, self._end = axes, axes.get_xlim()[1]
        self._second = self._end / (width - LEFT - RIGHT)  # seconds per inch

    def write(self, at: float, text: str, colour: str) -> None:
        free, size = self.free, INCHES_PER_LETTER * len(text) * self._second
        at = min(at, max(min(free), self._end - size))  # earlier only where that is free
        row = min(range(len(free)), key=lambda r: (free[r] > at, r if free[r] <= at else free[r]))
        self._axes.text(at, row + 0.5, text, color=colour, fontsize=9, va="center", clip_on=True)
        free[row] = at + size + 0.15 * self._second


def _voice(axes: Axes, name: str, levels: Decibel, colour: str) -> None:
    """Loudness over time, mirrored, every 40 ms; -60 dB of full scale and below is a line."""
    height = np.clip((levels.ravel() + 60.0) / 50.0, 0.0, 1.0)
    axes.fill_between((np.arange(height.size) + 0.5) / FPS, -height, height, color=colour, linewidth=0, zorder=2)
    axes.axhline(0, color=colour, linewidth=0.8, zorder=2)
    axes.set_ylim(-1.15, 1.15)
    axes.set_yticks([])
    axes.set_ylabel(name, color=colour, fontsize=10, fontweight="bold", rotation=0, ha="right", va="center")


def _marks(axes: Axes, above: Sequence[Axes], marks: Sequence[Mark], width: float) -> None:
    """Responses and stops: a line through the voices and what it was."""
    lines = _Lines(axes, MARK_ROWS, width)
    for mark in sorted(marks, key=lambda m: m.seconds):
        colour = INK if mark.good else LATE
        for other in above:
            other.axvline(mark.seconds, color=colour, linewidth=1.0, linestyle=(0, (2, 2)), zorder=4)
        lines.write(mark.seconds, mark.text, colour)


def _states(axes: Axes, lowest: Axes, units: Sequence[UnitRecord]) -> None:
    """The agent's state behind its voice, one colour a state; which is said below `lowest`."""
    said = np.array([u.state if u.received_ms is not None else None for u in units], dtype=object)
    names = list(dict.fromkeys(state for state in said if state is not None))
    spare = [name for name in names if name not in STATES]
    colours = {**STATES, **{name: STATE_SPARE[i % len(STATE_SPARE)] for i, name in enumerate(spare)}}
    for name in names:
        here = said == name
        _area(axes, np.zeros(len(here)), here, color=colours[name], zorder=0, transform=axes.get_xaxis_transform())
    if names:
        handles = [Patch(color=colours[name], label=printable(name)) for name in names]
        axes.legend(handles=handles, loc="upper right", bbox_to_anchor=(1.0, 0.0), ncols=len(handles),
                    bbox_transform=lowest.transAxes, frameon=False, fontsize=9, handlelength=1.2, handleheight=1.0,
                    borderaxespad=1.6)  # fmt: skip
