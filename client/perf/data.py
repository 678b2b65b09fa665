"""Input data for perf_analyzer: real speech and pictures as sequences of units, with the indices the server expects."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

from client.loadtest.media import Media


def write(media: Media, streams: int, units: int, path: Path) -> None:
    """One data stream a user, `units` steps each: what perf_analyzer makes one sequence of.

    Tensors are base64 of their bytes: a quarter of the size of numbers, and nothing is rounded.
    """
    data = [[_step(media, user, index) for index in range(units)] for user in range(streams)]
    path.write_text(json.dumps({"data": data}))


def _step(media: Media, user: int, index: int) -> dict[str, Any]:
    unit = media.unit(user, index)
    return {"pcm": _bytes(unit.pcm), "frames": _bytes(unit.frames), "unit_index": [index]}


def _bytes(array: np.ndarray) -> dict[str, str]:
    return {"b64": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()}
