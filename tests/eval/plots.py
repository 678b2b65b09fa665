"""Plots of the evaluation, for the README."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from engine_builder.training.judges.figures import Tally

from .minutes import Minutes
from .results import Figures

_RIGHT = ("answer_accuracy_text", "answer_accuracy_audio_judge_template")
_BLUE, _GREY, _RED = "#3a6ea5", "#9aa5b1", "#d93a3a"


def delays(out: Path, tally: Tally) -> None:
    """delays.png: histograms of answer and stop delays."""
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3), sharey=False)
    for axis, name, title, limits in (
        (axes[0], "response_delay_units", "answer, after the end of the word", (2, 3)),
        (axes[1], "barge_in_stop_units", "silence, after an interruption begins", (None, 2)),
    ):
        values = tally.samples.get(name, [])
        axis.hist(values, bins=[i / 4 for i in range(-4, 25)], color=_BLUE)
        for limit, label in zip(limits, ("p50", "p95"), strict=True):
            if limit is not None:
                axis.axvline(limit, color=_RED, linewidth=1, linestyle="--")
                axis.text(limit, axis.get_ylim()[1] * 0.95, f" {label} must be left of this", color=_RED, fontsize=7,
                          va="top", rotation=90)  # fmt: skip
        axis.set_title(f"{title} (n = {len(values)})", fontsize=10)
        axis.set_xlabel("units of 160 ms")
    _save(figure, out / "delays.png")


def minutes(out: Path, found: Minutes) -> None:
    """minutes.png: accuracy by minute with two standard errors, and the line that the last one must not fall below."""
    count = len(found.right)
    at = list(range(1, count + 1))
    shares = [found.share(m) for m in range(count)]
    errors = [2 * (s * (1 - s) / max(n, 1)) ** 0.5 for s, n in zip(shares, found.answers, strict=True)]
    figure, axis = pyplot.subplots(figsize=(6, 3))
    axis.errorbar(at, shares, yerr=errors, marker="o", color=_BLUE, capsize=3, linewidth=1)
    axis.axhline(found.share(0) - 0.03, color=_RED, linewidth=1, linestyle="--")
    axis.set_ylim(min(0.8, min(shares) - 0.05), 1.01)
    axis.set_xlabel(f"minute, {found.sessions} conversations")
    axis.set_ylabel("right answers")
    _save(figure, out / "minutes.png")


def variants(out: Path, found: Mapping[str, Figures]) -> None:
    """variants.png: what each way of running the model does to its answers."""
    names = list(found)[::-1]
    figure, axis = pyplot.subplots(figsize=(8, 0.34 * len(names) + 1))
    for offset, key, colour in zip((0.18, -0.18), _RIGHT, (_BLUE, _GREY), strict=True):
        values = [found[name].get(key) or 0.0 for name in names]
        axis.barh([i + offset for i in range(len(names))], values, height=0.34, color=colour, label=key.split("_")[2])
    lowest = min(found[name].get(key) or 0.0 for name in names for key in _RIGHT)
    axis.set_xlim(max(0.0, min(0.9, lowest - 0.05)), 1.0)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_xlabel("right answers")
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    _save(figure, out / "variants.png")


def _save(figure: pyplot.Figure, path: Path) -> None:  # type: ignore[name-defined]
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
