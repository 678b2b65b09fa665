"""The real perf_analyzer: where its binary is, what it is told, and what its files say.

The newest binary that runs on Debian 12 is inside the wheel tritonclient 2.51.0 (`.venv-perf`, made by `make perf`).
The two libraries that it wants are those that the nvidia-pytriton wheel carries for its server; or the system's.
"""

from __future__ import annotations

import base64
import csv
import importlib.util
import json
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..loadtest.media import Media
from ..stream.units import UNIT_SECONDS

BINARY = Path(".venv-perf/bin/perf_analyzer")
LIBRARIES = ("libb64.so.0d", "libcudart.so.12")


class AnalyzerError(RuntimeError):
    """perf_analyzer is missing or failed; the message says what to do or what it said."""


@dataclass(frozen=True)
class Request:
    """One request of the profile export. Times are seconds on perf_analyzer's clock."""

    sequence: int
    unit: int  # unit_index as it was sent
    sent: float
    answered: float | None  # first response
    answer_unit: int | None

    @property
    def latency_ms(self) -> float | None:
        return None if self.answered is None else (self.answered - self.sent) * 1e3


@dataclass(frozen=True)
class Measurement:
    """The requests of one run, and the share of them that went out later than planned."""

    streams: int
    requests: list[Request]
    delayed: float


def write_input(media: Media, streams: int, units: int, path: Path) -> None:
    """A data stream a user, `units` steps each: what perf_analyzer makes one sequence of.

    Tensors are base64 of their bytes: a quarter of the size of numbers, and nothing is rounded.
    """

    def spelled(array: np.ndarray) -> dict[str, str]:
        return {"b64": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()}

    def step(user: int, index: int) -> dict[str, Any]:
        unit = media.unit(user, index)
        return {"pcm": spelled(unit.pcm), "frames": spelled(unit.frames), "unit_index": [index]}

    path.write_text(json.dumps({"data": [[step(user, index) for index in range(units)] for user in range(streams)]}))


def link_libraries(folder: Path) -> Path:
    """A directory for LD_LIBRARY_PATH with pytriton's copies under the names that perf_analyzer asks for."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = importlib.util.find_spec("pytriton")
    carried = Path(spec.origin).parents[1] / "nvidia_pytriton.libs" if spec and spec.origin else None
    for name in LIBRARIES:
        stem, _, suffix = name.partition(".")
        found = sorted(carried.glob(f"{stem}-*.{suffix}*")) if carried else []
        link = folder / name
        link.unlink(missing_ok=True)
        if found:
            link.symlink_to(found[0])
    return folder


def command(binary: Path, url: str, model: str, streams: int, data: Path, requests: int, out: Path) -> list[str]:
    """One unit per 160 ms and stream; sequence flags come from perf_analyzer, units and their indices from `data`."""
    return [
        str(binary),
        *("-m", model, "-u", url, "-i", "grpc", "--streaming", "--async"),
        *("--request-rate-range", f"{streams / UNIT_SECONDS:g}", "--request-distribution", "constant"),
        *("--num-of-sequences", str(streams), "--serial-sequences"),
        *("--input-data", str(data), "--request-count", str(requests)),
        *("-f", str(out.with_suffix(".csv")), "--profile-export-file", str(out.with_suffix(".json")), "--verbose-csv"),
    ]


def measure(
    url: str, streams: int, data: Path, requests: int, out: Path, model: str = "duplex", binary: Path = BINARY
) -> Measurement:
    """Runs perf_analyzer. `out`: path without suffix for its .csv, .json and .log. Raises AnalyzerError."""
    if not binary.is_file():
        raise AnalyzerError(f"{binary}: no such file; `make perf` installs it (the wheel tritonclient==2.51.0)")
    libraries = [str(link_libraries(out.parent / "lib").resolve()), os.environ.get("LD_LIBRARY_PATH", "")]
    environment = {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries))}
    arguments = command(binary, url, model, streams, data, requests, out)
    limit = 60 + 5 * requests * UNIT_SECONDS / streams
    try:
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        raise AnalyzerError(f"perf_analyzer did not end within {limit:.0f} s") from None
    log = done.stdout + done.stderr
    out.with_suffix(".log").write_text(log)
    if done.returncode or not out.with_suffix(".csv").is_file():
        raise AnalyzerError(f"perf_analyzer ended with {done.returncode}: {log.strip()[-600:]}")
    late = re.search(r"([\d.]+)% of the requests were delayed", log)
    found = read_export(out.with_suffix(".json"))
    out.with_suffix(".json").unlink()
    _write_requests(found, out.with_name(f"{out.name}-requests.csv"))
    if not found:
        raise AnalyzerError(f"profile export: expected requests, got none; {log.strip()[-600:]}")
    return Measurement(streams, found, float(late[1]) / 100 if late else 0.0)


def read_export(path: Path) -> list[Request]:
    """Requests of a profile export, in the order of sending.

    The file spells out every number of every tensor (half a megabyte a unit), so only what is needed is looked for: the
    beginning of a request, its unit_index, the times of its responses, the unit_index of the first one.
    """
    text = path.read_bytes()
    starts = [match.start() for match in re.finditer(rb'\{"timestamp":', text)]
    ends = [*starts[1:], len(text)]
    return sorted((_request(text[a:b]) for a, b in zip(starts, ends, strict=False)), key=lambda request: request.sent)


def _write_requests(requests: Sequence[Request], path: Path) -> None:
    """What is kept of an export: times in seconds since the first request."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("sequence", "unit", "sent_s", "latency_ms", "answer_unit"))
        for r in requests:
            latency = "" if r.latency_ms is None else round(r.latency_ms, 3)
            writer.writerow((r.sequence, r.unit, round(r.sent - requests[0].sent, 6), latency, r.answer_unit))


def _request(text: bytes) -> Request:
    head = re.match(rb'\{"timestamp":(\d+),"sequence_id":(\d+)', text)
    units = [int(value) for value in re.findall(rb'"unit_index":(\d+)', text)]  # request, then its responses
    times = re.search(rb'"response_timestamps":\[([\d,]*)\]', text)
    if head is None or times is None or not units:
        raise AnalyzerError(f"profile export: expected a request of a sequence with unit_index, got {text[:80]!r}")
    answers = [int(value) for value in times[1].split(b",") if value]
    return Request(
        sequence=int(head[2]),
        unit=units[0],
        sent=int(head[1]) / 1e9,
        answered=answers[0] / 1e9 if answers else None,
        answer_unit=units[1] if len(units) > 1 else None,
    )
