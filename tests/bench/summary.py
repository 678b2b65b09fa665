"""`build/runs/bench/summary.json`: every benchmark merges its keys into one file."""

from __future__ import annotations

import json
import os
from pathlib import Path

from triton_models.runtime.budget.probe import processor


def merge(directory: Path, values: dict[str, object]) -> None:
    """Adds or replaces keys of `directory/summary.json`."""
    path = directory / "summary.json"
    data = json.loads(path.read_text()) if path.exists() else {}
    data.update(values)
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")


def machine() -> str:
    """Processor and core count, for the line under a table."""
    return f"{processor()}, {os.cpu_count()} cores"
