"""What a run of a fleet is told as, from a story that was made up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from client.fleet.load import Look, Story, Visitor, Visits
from client.fleet.page import write
from client.loadtest.user import UnitLog, UserLog
from client.stream import DuplexError, Resumed

pytestmark = pytest.mark.unit


def test_the_page_counts_what_happened(tmp_path: Path) -> None:
    story = Story(100.0, events=[(5.0, "s2 is killed")])
    for number in range(3):
        log = UserLog(number, 101.0, 10)
        log.units = [UnitLog(k, 101 + k * 0.16, 101 + k * 0.16, received=101.05 + k * 0.16) for k in range(10)]
        story.visitors.append(Visitor(log))
    story.visitors[0].log.units[3].received = None
    story.visitors[0].news.append(Resumed(4, 0.5, 1, 0, anew=True))
    story.visitors[1].error = DuplexError("RESOURCE_EXHAUSTED", "sessions: full")
    room = {"capacity": 3, "admitted": 1, "reserved": 0, "free": 2, "draining": False}
    story.looks = [Look(0.0, {"s1": room, "s2": room}), Look(6.0, {"s1": room, "s2": None})]
    page = write(story, Visits(10, 1.0, 5.0), {"prometheus": "not installed"}, tmp_path)
    found = json.loads((tmp_path / "fleet.json").read_text())
    assert (found["visitors"], found["talked to the end"], found["units"], found["units unanswered"]) == (3, 2, 30, 1)
    assert found["sessions that began anew elsewhere"] == 1
    assert found["units on time"] == pytest.approx(29 / 30)
    assert "s2 is killed" in page.read_text()
    assert (tmp_path / "fleet.png").stat().st_size > 1000
