"""Writes what the evaluation found: summary.json and a table for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    ("minutes_stable", 10.0, True),
)
_TRIALS = {
    "response_delay_units_p50": "response_delay_units",
    "response_delay_units_p95": "response_delay_units",
    "barge_in_stop_units_p95": "barge_in_stop_units",
}
_VARIANT = ("answers", "answer_accuracy_text", "text_points", "answer_accuracy_audio_judge_template",
            "sentence_accuracy_text", "response_delay_units_p95", "barge_in_stop_units_p95", "av_sync_ms")  # fmt: skip


_SPEAKERS = ("answer_accuracy_text", "answers", "answer_accuracy_audio_judge", "transcript_error_rate",
             "self_answer_rate", "barge_in_stop_units_p95", "again_accuracy", "recall_accuracy")  # fmt: skip

_PERSONA = ("persona_face", "persona_voice", "answer_accuracy_text", "answer_accuracy_audio_judge", "answers")


def misses(found: Mapping[str, Any]) -> list[str]:
    """The targets that are missed, in words. A figure without a trial is missed, one that was not asked for is not."""
    out = []
    for name, target, more in TARGETS:
        if name not in found:
            continue
        value = found[name]
        if value is None or (value < target if more else value > target):
            out.append(f"{name}: required {'>=' if more else '<='} {target:g}, got {value}")
    return out


def write(out: Path, summary: Mapping[str, Any]) -> None:
    """summary.json and table.md in `out`, each replaced in one step."""
    out.mkdir(parents=True, exist_ok=True)
    for name, text in (("summary.json", json.dumps(summary, indent=2) + "\n"), ("table.md", table(summary))):
        part = out / f"{name}.part"
        part.write_text(text)
        part.replace(out / name)


def table(summary: Mapping[str, Any]) -> str:
    """Markdown: the targets, the minutes, the variants, what was served."""
    lines = [] if summary.get("complete") else ["Interrupted: what had been played by then.", ""]
    lines += ["| figure | required | found | 95 % interval | trials |", "|---|---|---|---|---|"]
    for name, target, more in TARGETS:
        if name not in summary:
            continue
        span = summary["interval95"].get(name)
        count = summary["trials"].get(_TRIALS.get(name, name))
        lines.append(
            f"| {name} | {'>=' if more else '<='} {target:g} | {_number(summary.get(name))} | "
            f"{'' if span is None else f'{span[0]:.3f} to {span[1]:.3f}'} | {'' if count is None else count} |"
        )
    for name in (
        "answer_accuracy_audio_with_misses",
        "take_over_rate",
        "sentence_accuracy_text",
        "barge_in_silent",
        "idle_face_blinks",
        "av_correlation",
    ):
        if name not in summary:
            continue
        lines.append(f"| {name} | | {_number(summary.get(name))} | | |")
    speakers = summary.get("speakers")
    if speakers:
        lines += [
            "",
            "| speakers | right, text | of | right, audio | transcript errors | answers itself | silent after, p95 | "
            "again | what did I say |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {row} | " + " | ".join(_number(f.get(n)) for n in _SPEAKERS) + " |" for row, f in speakers.items()
        ]
    personas = {name: found for name, found in summary.get("personas", {}).items() if found}
    if personas:
        lines += ["", "| persona | its face | its voice | right, text | right, audio | of |"]
        lines += ["|---" * 6 + "|"]
        lines += [f"| {name} | " + " | ".join(_number(f.get(n)) for n in _PERSONA) + " |"
                  for name, f in personas.items()]  # fmt: skip
    if summary.get("minutes"):
        minutes = summary["minutes"]
        lines += ["", f"| minute of {minutes['conversations']} conversations | " + " | ".join(
            str(m + 1) for m in range(len(minutes["accuracy"]))) + " |"]  # fmt: skip
        lines += ["|---" * (len(minutes["accuracy"]) + 1) + "|"]
        lines += ["| right answers | " + " | ".join(f"{a:.3f}" for a in minutes["accuracy"]) + " |"]
        lines += ["| of | " + " | ".join(map(str, minutes["answers"])) + " |"]
    faces = {name: found for name, found in summary.get("faces", {}).items() if found}
    if faces:
        lines += [
            "",
            "| | open eyes look to a side, not to the mean of both | the other at the next glance (a coin: 0.5) |",
        ]
        lines += ["|---|---|---|"]
        lines += [f"| {name} | {_number(f['idle_eyes_choose'])} | {_number(f['idle_eyes_turn'])} |"
                  for name, f in faces.items()]  # fmt: skip
    if summary.get("variants"):
        lines += ["", "| variant | " + " | ".join(_VARIANT) + " |", "|---" * (len(_VARIANT) + 1) + "|"]
        lines += [f"| {v} | " + " | ".join(_number(f.get(n)) for n in _VARIANT) + " |"
                  for v, f in summary["variants"].items()]  # fmt: skip
    lines += ["", *_ways(summary)]
    return "\n".join(lines) + "\n"


def _ways(summary: Mapping[str, Any]) -> list[str]:
    """Which part of the evaluation went through what."""
    lines = ["All figures: the served engines in the serving runtime (thinker, performer, workers, pages), in process; "
             "variants named PyTorch: the model without engines."]  # fmt: skip
    oracle, served, ceilings = summary.get("oracle"), summary.get("served"), summary.get("ceilings")
    if oracle:
        lines.append(f"One-pass oracle: {oracle['same']} of {oracle['decisions']} decisions of the engines the same, "
                     f"latents within {oracle['largest_latent_difference']:.1e}.")  # fmt: skip
    if served:
        lines.append(
            f"Real tritonserver and gRPC client: {served['conversations']} conversations, {served['units']} units; "
            f"words equal to the runtime's in {served['same_words']}, sound and pictures to the last bit in "
            f"{served['same_sound']} and {served['same_pictures']}."
        )
    if ceilings:
        lines.append("Judges on clean words: " + ", ".join(f"{k.removeprefix('ceiling_')} {v:.3f}" for k, v in
                     ceilings.items()) + ".")  # fmt: skip
    return lines


def _number(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
