"""Scrape configuration, alert rules and dashboard, checked by Prometheus' own promtool; no server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from triton_models.observability.table import TABLE

pytestmark = pytest.mark.unit

FILES = Path(__file__).parents[3] / "build" / "observability"
NAMES = {spec.name for specs in TABLE.values() for spec in specs}


@pytest.mark.parametrize(
    "arguments",
    [("check", "config", "prometheus.yml"), ("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")],
    ids=" ".join,
)
def test_promtool_agrees(arguments: tuple[str, ...]) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    done = subprocess.run(["promtool", *arguments], cwd=FILES, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_and_dashboard_name_only_metrics_that_exist() -> None:
    for file in ("alerts.yml", "alerts_test.yml", "dashboard.json", "METRICS.md"):
        for name in re.findall(r"wan_streamer_\w+", (FILES / file).read_text()):
            assert {name, re.sub(r"_(bucket|sum|count)$", "", name)} & NAMES, f"{file}: {name}"


def test_the_dashboard_shows_every_metric() -> None:
    text = (FILES / "dashboard.json").read_text()
    assert not [name for name in NAMES if name not in text]


def test_the_dashboard_is_laid_out_without_overlaps() -> None:
    dashboard = json.loads((FILES / "dashboard.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
