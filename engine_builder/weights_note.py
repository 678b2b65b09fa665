"""What a checkpoint says about itself, and the manifest passes on: one honest sentence about where its weights come
from, and the session options that suit them (for example the retention it was trained with)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .config import ConfigError

NOTE = "WEIGHTS"
DEFAULTS = "defaults.json"


def write_weights_note(checkpoint: Path, sentence: str) -> None:
    (checkpoint / NOTE).write_text(sentence.strip() + "\n")


def read_weights_note(checkpoint: Path) -> str:
    path = checkpoint / NOTE
    return path.read_text().strip() if path.exists() else "of unknown origin (no WEIGHTS note in the checkpoint)"


def read_defaults(checkpoint: Path) -> dict[str, Any]:
    """`defaults.json` of a checkpoint: options that a server takes where a client says nothing. {} if there is none."""
    path = checkpoint / DEFAULTS
    if not path.exists():
        return {}
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON ({error})") from None
    unknown = sorted(set(data) - {"retention"}) if isinstance(data, dict) else [type(data).__name__]
    if unknown:
        raise ConfigError(f"{path}: expected an object with `retention` only, got {', '.join(unknown)}")
    return data
