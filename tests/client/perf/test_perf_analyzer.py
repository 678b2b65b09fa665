"""The real perf_analyzer drives a real server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from client.perf.__main__ import main
from client.perf.analyzer import BINARY

pytestmark = pytest.mark.server


def test_perf_analyzer_drives_whole_sequences_of_real_media(mini_engines: Path, tmp_path: Path) -> None:
    binary = Path(__file__).parents[3] / BINARY
    if not binary.is_file():
        pytest.skip(f"{BINARY} is not there: make {BINARY}")
    arguments = ["--engines", str(mini_engines), "--streams", "2", "--units", "8", "--binary", str(binary)]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["faults"] == [], "unit indices, answers and the server's own counters agree"
    assert [row["units"] for row in summary["table"]] == [16, 16, 16]
    assert (tmp_path / "analyzer-2-requests.csv").read_text().count("\n") == 17
    assert "Inferences/Second" in (tmp_path / "analyzer-2.csv").read_text()
