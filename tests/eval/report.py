"""Writes what the evaluation found: summary.json, a table for the README, and plots."""

from __future__ import annotations

import json
from pathlib import Path

from engine_builder.training.judges.figures import Tally

Figures = dict[str, float | None]

# Figure, what is required of it, and whether more is better.
TARGETS: tuple[tuple[str, float, bool], ...] = (
    ("answer_accuracy_text", 0.97, True),
    ("answer_accuracy_audio_judge", 0.95, True),
    ("audio_agrees_with_own_text", 0.97, True),
    ("colour_accuracy", 0.95, True),
    ("text_input_accuracy", 0.98, True),
    ("response_delay_units_p50", 2.0, False),
    ("response_delay_units_p95", 3.0, False),
    ("barge_in_stop_units_p95", 2.0, False),
    ("false_start_rate", 0.02, False),
    ("backchannel_stop_rate", 0.10, False),
    ("av_sync_ms", 45.0, False),
)


def misses(found: Figures) -> list[str]:
    """The targets that are missed, in words."""
    out = []
    for name, target, more in TARGETS:
        value = found.get(name)
        if value is None or (value < target if more else value > target):
            out.append(f"{name}: required {'>=' if more else '<='} {target}, got {value}")
    return out


def write(out: Path, summary: dict[str, object], found: Figures, variants: dict[str, Figures]) -> None:
    """summary.json and table.md."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    lines = ["| figure | required | found |", "|---|---|---|"]
    for name, target, more in TARGETS:
        lines.append(f"| {name} | {'>=' if more else '<='} {target} | {found.get(name)} |")
    if variants:
        names = [name for name, _, _ in TARGETS if any(name in v for v in variants.values())]
        lines += ["", "| variant | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        lines += [f"| {v} | " + " | ".join(str(f.get(n)) for n in names) + " |" for v, f in variants.items()]
    (out / "table.md").write_text("\n".join(lines) + "\n")


def plot(out: Path, tally: Tally, minutes: list[float]) -> None:
    """delays.png (histograms of answer and stop delays) and minutes.png (accuracy by minute of conversation)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3), sharey=True)
    for axis, name, title in (
        (axes[0], "response_delay_units", "answer after the end of the word"),
        (axes[1], "barge_in_stop_units", "silence after an interruption begins"),
    ):
        axis.hist(tally.samples.get(name, []), bins=[i / 4 for i in range(-4, 25)], color="#3a6ea5")
        axis.set_title(title)
        axis.set_xlabel("units of 160 ms")
    figure.tight_layout()
    figure.savefig(out / "delays.png", dpi=110)
    pyplot.close(figure)
    if minutes:
        figure, axis = pyplot.subplots(figsize=(5, 3))
        axis.plot(range(1, len(minutes) + 1), minutes, marker="o", color="#3a6ea5")
        axis.set_ylim(0, 1.02)
        axis.set_xlabel("minute of one conversation")
        axis.set_ylabel("right answers")
        figure.tight_layout()
        figure.savefig(out / "minutes.png", dpi=110)
        pyplot.close(figure)
