"""The open-loop driver against the server that is not there: due times, lateness, errors, early ends, files."""

from __future__ import annotations

import asyncio
import csv
import json
from pathlib import Path

import numpy as np
import psutil
import pytest

from client.cli import main
from client.loadtest import files, summary
from client.loadtest.driver import Plan, Run, run
from client.loadtest.media import Media
from client.loadtest.user import UserLog
from client.stream.client import DuplexClient
from client.stream.errors import DuplexError
from client.stream.units import UNIT_MS, UNIT_SECONDS, UnitShape

pytestmark = pytest.mark.unit


def plan(url: str, **changes) -> Plan:
    return Plan(url, **{"sessions": 2, "seconds": 8 * UNIT_SECONDS, "warm_up": 0.0, **changes})


async def test_users_send_real_media_in_real_time_on_streams_of_their_own(start_fake):
    fake, _ = await start_fake()
    outcome = await run(plan(fake.url, options={"seed": 3}))
    assert outcome.planned == len(outcome.judged()) == 16
    assert len({unit.session for unit in fake.seen}) == 2
    for user in outcome.users:
        assert [unit.index for unit in user.answered()] == list(range(8))
        assert [round((b.due - a.due) * 1e3, 3) for a, b in zip(user.units, user.units[1:], strict=False)] == [
            UNIT_MS
        ] * 7
        assert all(unit.sent is not None and unit.sent >= unit.due for unit in user.units)
    starts = [unit for unit in fake.seen if unit.start]
    assert [unit.options for unit in starts] == [{"hold_open": True, "seed": 3}] * 2
    assert sum(unit.end for unit in fake.seen) == 2
    assert any(np.abs(unit.pcm).max() > 0.01 for unit in fake.seen), "somebody speaks"
    assert all(unit.frames.std() > 1 for unit in fake.seen), "and is seen"
    assert not np.array_equal(starts[0].frames, starts[1].frames), "each at another place of the recording"


async def test_a_stall_is_charged_to_every_unit_that_it_delayed(start_fake):
    """A tool that waits for answers before it sends would see one slow unit; users behind it waited, too."""
    stall = 1.0
    fake, _ = await start_fake(delay=lambda unit: stall if unit == 2 else 0.0)
    outcome = await run(plan(fake.url, sessions=1, seconds=12 * UNIT_SECONDS))
    response = [unit.response_ms or 0 for unit in outcome.users[0].units]
    service = [unit.service_ms or 0 for unit in outcome.users[0].units]
    assert sum(value > UNIT_MS for value in response) >= 5
    assert all(from_due >= from_sending for from_due, from_sending in zip(response, service, strict=True))
    for late, unit in enumerate(range(2, 7)):
        assert response[unit] >= stall * 1e3 - late * UNIT_MS - 1, "due times do not move"
    figures = summary.build(outcome)
    assert figures["ms"]["response"]["p95"] > figures["ms"]["service"]["p50"]
    assert figures["send_lateness_ms"]["max"] > UNIT_MS
    assert figures["playout"]["underruns"] >= 5


async def test_units_that_were_due_and_never_sent_count_as_late(start_fake):
    fake, _ = await start_fake(errors={3: "RESOURCE_EXHAUSTED: sessions: this server is full"})
    outcome = await run(plan(fake.url))
    assert [user.error.code for user in outcome.users if user.error] == ["RESOURCE_EXHAUSTED"] * 2
    assert outcome.planned == 16
    assert outcome.on_time_share <= 6 / 16
    figures = summary.build(outcome)
    assert figures["errors"] == {"RESOURCE_EXHAUSTED": 2}
    assert figures["sessions"] == {"wanted": 2, "without_error": 0}


async def test_the_warm_up_is_logged_and_not_judged(start_fake):
    fake, _ = await start_fake(delay=lambda unit: 0.3 if unit == 0 else 0.0)
    outcome = await run(plan(fake.url, warm_up=3 * UNIT_SECONDS))
    assert outcome.planned == len(outcome.judged()) == 2 * 5
    assert all(len(user.units) == 8 for user in outcome.users)
    first = summary.build(outcome)["first_response_ms"]
    assert first is not None
    assert first["p50"] >= 300


async def test_stopping_early_keeps_what_was_measured(start_fake):
    fake, _ = await start_fake()
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(2.5, stop.set)
    outcome = await run(plan(fake.url, seconds=60), stop=stop)
    assert 0 < outcome.planned < 2 * 60 / UNIT_SECONDS
    assert outcome.planned == len(outcome.judged())
    await asyncio.wait_for(fake.cancelled.wait(), 5)


async def test_giving_up_ends_the_run(start_fake):
    fake, _ = await start_fake(silent_from=0)
    outcome = await run(plan(fake.url, seconds=60), give_up=lambda run: len(run.judged()) > 2)
    assert outcome.gave_up
    assert outcome.on_time_share == 0


async def test_every_client_has_a_connection_of_its_own(start_fake):
    """Channels to one address would share one, and a reader that stalls would hold up everybody."""
    fake, _ = await start_fake()
    port = int(fake.url.rsplit(":", 1)[1])
    async with await DuplexClient.connect(fake.url), await DuplexClient.connect(fake.url):
        peers = [c for c in psutil.Process().net_connections("tcp") if c.raddr and c.raddr.port == port]
        assert len({c.laddr.port for c in peers}) == 2


async def test_no_server(tmp_path):
    with pytest.raises(DuplexError, match="UNAVAILABLE"):
        await run(plan("127.0.0.1:1", timeout=0.3))


def test_plans_that_make_no_sense():
    with pytest.raises(ValueError, match="sessions: expected >= 1, got 0"):
        plan("x", sessions=0)
    with pytest.raises(ValueError, match="seconds: expected > 0"):
        plan("x", seconds=0)
    assert plan("x", seconds=0.16, warm_up=9).warm_units == 0, "one unit is always judged"


def test_every_user_walks_through_the_whole_recording():
    media = Media.read(UnitShape(2560, 16, 16))
    assert len(media) == 176
    assert media.frames.shape == (176, 4, 16, 16, 3)
    unit = media.unit(user=3, index=5, end=True)
    unit.check(UnitShape(2560, 16, 16))
    assert (unit.index, unit.end) == (5, True)
    heard = np.stack([media.unit(3, index).pcm for index in range(len(media))])
    assert np.array_equal(np.sort(heard, axis=0), np.sort(media.pcm, axis=0))
    assert np.array_equal(media.unit(3, 5).pcm, media.unit(3, 5 + len(media)).pcm)


async def test_the_command_writes_its_files(start_fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    fake, _ = await start_fake(delay=lambda unit: 0.005)
    arguments = ["loadtest", "--sessions", "2", "--minutes", "0.02", "--warm-up", "0.3", "--url", fake.url]
    code = await asyncio.to_thread(main, [*arguments, "--out", str(tmp_path)])
    assert code == 0
    figures = json.loads((tmp_path / "summary.json").read_text())
    assert figures["plan"]["sessions"] == 2
    assert figures["ms"]["perform"]["p50"] == 30.0
    with (tmp_path / "units.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16
    assert {row["judged"] for row in rows} == {"0", "1"}
    page = (tmp_path / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert "$" not in page
    assert (tmp_path / "loadtest.png").stat().st_size > 10_000


async def test_the_search_writes_its_probes(start_fake, tmp_path: Path):
    fake, _ = await start_fake()
    arguments = ["loadtest", "--sessions", "2", "--minutes", "0.015", "--warm-up", "0", "--find-capacity"]
    code = await asyncio.to_thread(main, [*arguments, "--url", fake.url, "--out", str(tmp_path)])
    assert code == 0
    figures = json.loads((tmp_path / "summary.json").read_text())
    assert figures["capacity"]["probes"][0]["sessions"] == 1
    assert figures["capacity"]["sessions"] in (0, 1, 2)
    assert (tmp_path / "capacity.csv").read_text().startswith("sessions,held,share,refused,p99_ms\n1,")
    assert "Probes" in (tmp_path / "report.html").read_text()


def test_a_page_without_answers_is_still_a_page(tmp_path: Path):
    silent = Run(plan("x"), "now", [UserLog(0, 0.0, 8), UserLog(1, 0.0, 8)], {}, {}, {"audio": "a", "video": "v"})
    figures = files.write(silent, tmp_path)
    assert figures["on_time"]["share"] == 0.0
    assert figures["ms"]["response"] is None
