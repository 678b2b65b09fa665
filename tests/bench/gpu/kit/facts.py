"""What the stages share that tell facts instead of rows: their options, and a file that is whole after every fact."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from gpu_plan import say


def stage_options() -> argparse.Namespace:
    """OUT, the preset, and whether this is a smoke run: `tiny` then, otherwise `v0.1-8b` unless told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--preset")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    args.preset = args.preset or ("tiny" if args.smoke else "v0.1-8b")
    return args


class Facts:
    """JSON in `file`; each fact is printed and written when it is known."""

    def __init__(self, file: Path, **first: Any) -> None:
        self._file, self._found = file, first

    def save(self, name: str, value: Any) -> None:
        self._found[name] = value
        say(f"{name}: {json.dumps(value)}")
        self._file.write_text(json.dumps(self._found, indent=1) + "\n")
