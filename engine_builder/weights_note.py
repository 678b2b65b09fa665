"""One honest sentence about where a checkpoint's weights come from; it travels into the manifest and the reports."""

from __future__ import annotations

from pathlib import Path

NOTE = "WEIGHTS"


def write_weights_note(checkpoint: Path, sentence: str) -> None:
    (checkpoint / NOTE).write_text(sentence.strip() + "\n")


def read_weights_note(checkpoint: Path) -> str:
    path = checkpoint / NOTE
    return path.read_text().strip() if path.exists() else "of unknown origin (no WEIGHTS note in the checkpoint)"
