"""A load test of a real server that takes two sessions: the third user is refused, the others are served."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from client import own_server
from client.cli import main

pytestmark = pytest.mark.server


async def test_a_full_server_refuses_and_serves(mini_engines: Path, tmp_path: Path) -> None:
    with own_server.server(mini_engines, tmp_path / "server", "--admit-all", "--max-sessions", "2") as facts:
        arguments = ["--sessions", "3", "--minutes", "0.05", "--warm-up", "0.5", "--steps", "2", "--url", facts["grpc"]]
        retention = ["--retention", "window:1,4"]
        code = await asyncio.to_thread(main, ["loadtest", *arguments, *retention, "--out", str(tmp_path / "out")])
    assert code == 1
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert found["sessions"] == {"wanted": 3, "without_error": 2}
    assert found["errors"] == {"RESOURCE_EXHAUSTED": 1}
    assert (found["units"]["due"], found["units"]["answered"]) == (3 * 16, 2 * 16)
    assert found["on_time"]["share"] < 0.667, "nobody answers a user who was refused"
    assert all(
        found["ms"][stage] for stage in ("queue", "perceive", "think", "perform", "render", "total", "transport")
    )
    assert found["playout"]["av_skew_ms"] is not None
    assert found["weights"] == facts["weights"]
