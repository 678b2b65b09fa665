"""`build/runs/bench/summary.json`: every benchmark merges its keys into one file."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path


def merge(directory: Path, values: dict[str, object]) -> None:
    """Adds or replaces keys of `directory/summary.json`."""
    path = directory / "summary.json"
    data = json.loads(path.read_text()) if path.exists() else {}
    data.update(values)
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")


def machine() -> str:
    """Processor and core count, for the line under a table."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    return f"{model}, {os.cpu_count()} cores"
