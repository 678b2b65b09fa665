"""Whole conversations, as the command line holds them, against the server in this process."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client import cli, terminal
from client.media.source import TypedText, read_source
from client.report import figures as report
from client.stream.client import DuplexClient
from client.stream.reconnect import Reconnect
from client.talk.conversation import converse

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]


async def _talk(fake, tmp_path, *, seconds=0.8, stop=None, typed=(), on_unit=None, timeout=10.0, options=None):
    async with await DuplexClient.connect(fake.url) as client:
        source = read_source(client.shape, typed=[TypedText(0, "hello"), *typed], tail=seconds)
        return await converse(client, source, tmp_path, stop=stop, on_unit=on_unit, timeout=timeout, options=options)


async def test_every_unit_is_recorded_with_its_answer(start_fake, tmp_path):
    fake, _ = await start_fake(
        answer=lambda seen: ("speak", f"{seen.index} ", seen.pcm + 0.5, seen.frames), heard={3: " two"}
    )
    ticks = []
    talk = await _talk(fake, tmp_path, on_unit=lambda unit: ticks.append(unit.index), options={"seed": 3})
    assert [u.index for u in talk.units] == ticks == list(range(5))
    assert not talk.errors
    assert not talk.stopped
    assert (talk.units[0].user_text, talk.units[1].user_text) == ("hello", "")
    assert [u.text for u in talk.units] == ["0 ", "1 ", "2 ", "3 ", "4 "]
    assert [u.heard for u in talk.units] == ["", "", "", " two", ""]
    assert all(u.due_ms == pytest.approx(160 * (u.index + 1)) for u in talk.units)
    assert all(u.late_send_ms >= 0 and u.response_ms is not None for u in talk.units)
    assert fake.seen[0].options == {"hold_open": True, "seed": 3}
    assert all((agent == 0.5).all() for _, agent in talk.voices())
    talk.recording.close()


async def test_a_server_that_goes_away_leaves_what_was_there(start_fake, tmp_path):
    fake, _ = await start_fake(leave_at=3)
    talk = await _talk(fake, tmp_path, seconds=3)
    assert len(talk.answered()) == 3
    assert [e.code for e in talk.errors] == ["UNAVAILABLE"]


async def test_a_refused_unit_ends_the_conversation_with_its_reason(start_fake, tmp_path):
    fake, _ = await start_fake(errors={2: "INVALID_ARGUMENT: text: too long"})
    talk = await _talk(fake, tmp_path, seconds=3)
    assert len(talk.answered()) == 2
    assert [str(e) for e in talk.errors] == ["INVALID_ARGUMENT: text: too long"]


async def test_a_silent_server_ends_the_conversation(start_fake, tmp_path):
    fake, _ = await start_fake(silent_from=1)
    talk = await _talk(fake, tmp_path, seconds=3, timeout=0.4)
    assert [e.code for e in talk.errors] == ["DEADLINE_EXCEEDED"]
    assert 2 <= len(talk.units) <= 4


async def test_an_answer_to_a_unit_never_sent_is_an_error(start_fake, tmp_path):
    fake, _ = await start_fake(swap=(1, 50))
    talk = await _talk(fake, tmp_path, seconds=1.5)
    assert [e.message for e in talk.errors] == ["unit_index: the server answered unit 50, never sent"]


async def test_stopping_sends_one_last_unit(start_fake, tmp_path):
    fake, _ = await start_fake()
    stop = asyncio.Event()
    talk = await _talk(
        fake, tmp_path, seconds=5, stop=stop, on_unit=lambda unit: stop.set() if unit.index == 2 else None
    )
    assert talk.stopped
    assert not talk.errors
    assert len(talk.units) == len(talk.answered()) < 8
    assert fake.seen[-1].end


async def test_a_file_that_breaks_off_keeps_what_was_said(start_fake, tmp_path, monkeypatch):
    fake, _ = await start_fake()
    path = tmp_path / "face.png"
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(path)
    async with await DuplexClient.connect(fake.url) as client:
        source = read_source(client.shape, video=path, tail=2)
        path.write_bytes(b"broken")
        talk = await converse(client, source, tmp_path)
    assert [e.code for e in talk.errors] == ["ABORTED"]
    assert "face.png" in talk.errors[0].message


# -- command line --------------------------------------------------------------------------------------------------
async def _cli(*arguments: str) -> int:
    return await asyncio.to_thread(cli.main, list(arguments))


async def test_converse_writes_the_three_files(start_fake, tmp_path, capsys):
    fake, _ = await start_fake(heard={2: " two", 3: " three"})
    code = await _cli(
        "converse", "--url", fake.url, "--text", "hi", "--text-at", "0.5", "there", "--tail", "0.8", "--steps", "2",
        "--seed", "9", "--prompt", "be brief", "--retention", "window:4,50", "--session", "ada", "--out", str(tmp_path),
    )  # fmt: skip
    assert code == 0
    assert {p.name for p in tmp_path.iterdir()} == {"conversation.mp4", "timeline.png", "report.json"}
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["weights"] == "random (test double)"
    assert data["units"]["answered"] == data["units"]["sent"] == data["units"]["planned"]
    assert fake.seen[0].session == "ada"
    assert fake.seen[0].options == {
        "hold_open": True,
        "resume": True,
        "prompt": "be brief",
        "seed": 9,
        "retention": {"window": {"sink": 4, "recent": 50}},
        "solver_steps": 2,
    }
    assert [s.text for s in fake.seen if s.text] == ["hi", "there"]
    said = [line.split(maxsplit=1) for line in capsys.readouterr().err.splitlines() if line.startswith("  user")]
    assert said == [["user", "hi"], ["user", "two three"], ["user", "there"]]


async def test_a_conversation_that_fails_on_the_way_exits_with_1_and_its_files(start_fake, tmp_path):
    fake, _ = await start_fake(leave_at=2)
    arguments = ["converse", "--url", fake.url, "--text", "hi", "--out", str(tmp_path)]
    assert await _cli(*arguments, "--no-reconnect") == 1
    assert (tmp_path / "conversation.mp4").exists()
    data = json.loads((tmp_path / "report.json").read_text())
    assert (data["errors"][0]["code"], data["outages"]) == ("UNAVAILABLE", [])
    assert "resume" not in fake.seen[0].options


async def test_a_film_that_cannot_be_written_shows_in_the_exit_status(start_fake, tmp_path, capsys):
    fake, _ = await start_fake()
    (tmp_path / "conversation.mp4").mkdir()
    assert await _cli("converse", "--url", fake.url, "--text", "hi", "--tail", "0.3", "--out", str(tmp_path)) == 1
    assert "conversation.mp4: cannot be written" in capsys.readouterr().err
    assert (tmp_path / "report.json").exists()


async def test_a_lost_connection_is_mended_and_told(start_fake, tmp_path, capsys):
    fake, _ = await start_fake(leave_at=2)
    assert await _cli("converse", "--url", fake.url, "--text", "hi", "--tail", "1.2", "--out", str(tmp_path)) == 0
    errors = capsys.readouterr().err
    assert re.search(r"connection lost, resumed after \d\.\d s \(\d units? lost\)", errors)
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["errors"] == []
    outage = data["outages"][0]
    assert outage["lost"] >= 1
    assert data["units"]["sent"] == data["units"]["planned"] - outage["skipped"]
    assert data["units"]["answered"] == data["units"]["sent"] - outage["lost"]
    assert 2 in data["on_time"]["late_units"]


async def test_units_that_fell_into_an_outage_leave_no_gap_in_the_record(start_fake, tmp_path):
    fake, _ = await start_fake(leave_at=2)

    def tick(unit):
        if unit.index == 1:
            fake.ready = False
            asyncio.get_running_loop().call_later(0.9, setattr, fake, "ready", True)

    async with await DuplexClient.connect(fake.url) as client:
        source = read_source(client.shape, typed=[TypedText(0, "hello"), TypedText(0.7, "there")], tail=1.3)
        talk = await converse(client, source, tmp_path, on_unit=tick, reconnect=Reconnect(first=0.05, longest=0.1))
    assert not talk.errors
    assert [u.index for u in talk.units] == list(range(source.count))
    skipped = [u.index for u in talk.units if u.skipped]
    news = talk.outages[0]
    assert skipped == list(range(2 + news.lost, 2 + news.lost + news.skipped))
    assert len(skipped) >= 1
    assert [u.index for u in talk.units if u.received_ms is None] == [*range(2, 2 + news.lost), *skipped]
    assert [s.text for s in fake.seen if s.text] == ["hello", "there"]
    data = report.build(talk)
    assert data["units"]["sent"] == source.count - len(skipped)
    talk.recording.close()


async def test_stopping_does_not_wait_for_a_lost_connection(start_fake, tmp_path):
    fake, server = await start_fake()
    stop = asyncio.Event()

    async def lose_and_stop():
        await server.stop(0)
        await asyncio.sleep(0.4)
        stop.set()

    tasks = []
    async with await DuplexClient.connect(fake.url) as client:
        source = read_source(client.shape, typed=[TypedText(0, "hello")], tail=20)
        talk = await asyncio.wait_for(
            converse(
                client,
                source,
                tmp_path,
                stop=stop,
                reconnect=True,
                on_unit=lambda unit: tasks.append(asyncio.ensure_future(lose_and_stop())) if unit.index == 1 else None,
            ),
            10,
        )
    assert talk.stopped
    assert [e.code for e in talk.errors] == ["CANCELLED"]
    assert "while the connection was lost" in talk.errors[0].message
    assert len(talk.answered()) == 2
    talk.recording.close()


async def test_what_cannot_start_exits_with_2(start_fake, tmp_path, capsys):
    fake, _ = await start_fake()
    out = ["--out", str(tmp_path)]
    assert await _cli("converse", "--url", fake.url, "--audio", str(tmp_path / "no.wav"), *out) == 2
    assert await _cli("converse", "--url", fake.url, *out) == 2
    assert await _cli("converse", "--url", fake.url, "--text-at", "soon", "x", *out) == 2
    assert await _cli("converse", "--url", "127.0.0.1:1", "--timeout", "0.3", "--text", "x", *out) == 2
    errors = capsys.readouterr().err
    for part in ("no.wav: no such file", "nothing to say", "expected seconds and a text, got 'soon'", "UNAVAILABLE"):
        assert part in errors


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("converse --tail nan", "--tail: expected seconds, at most a day of them, got 'nan'"),
        ("converse --seconds -1", "--seconds: expected seconds"),
        ("converse --timeout inf", "--timeout: expected seconds"),
        ("converse --text-at nan x", "--text-at: expected seconds and a text, got 'nan' 'x'"),
        ("converse --text \udce9", "--text: expected UTF-8"),
        ("converse --prompt \udce9", "--prompt: expected UTF-8"),
        ("converse --steps 0", "--steps: expected a number of at least 1, got '0'"),
        ("converse --text x --url http://HOST:8001", "url: expected HOST:PORT, got 'http://HOST:8001'"),
        ("converse --text x --url HOST", "url: expected HOST:PORT, got 'HOST'"),
        ("converse --text x --out {file}", "File exists"),
        ("info --url HOST", "url: expected HOST:PORT, got 'HOST'"),
        ("loadtest --minutes nan", "--minutes: expected minutes"),
        ("loadtest --sessions x", "--sessions: expected a number of at least 1, got 'x'"),
        ("loadtest --warm-up nan", "--warm-up: expected seconds"),
        ("loadtest --url HOST", "url: expected HOST:PORT, got 'HOST'"),
    ],
)
def test_a_bad_value_is_one_sentence_and_exit_status_2(arguments, sentence, tmp_path, capsys):
    (tmp_path / "file").touch()
    out = [] if "--out" in arguments or "converse" not in arguments else ["--out", str(tmp_path)]
    try:
        status = cli.main([part.replace("{file}", str(tmp_path / "file")) for part in [*arguments.split(), *out]])
    except SystemExit as end:
        status = end.code
    assert status == 2
    assert sentence in capsys.readouterr().err


async def test_info_prints_the_metadata(start_fake, capsys):
    fake, _ = await start_fake()
    assert await _cli("info", "--url", fake.url) == 0
    assert "16000 Hz" in capsys.readouterr().out
    assert await _cli("info", "--url", fake.url, "--json") == 0
    assert json.loads(capsys.readouterr().out)["frames"] == "uint8 [4, 64, 64, 3], 25 fps RGB"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("full", "full"),
        ("window:4,50", {"window": {"sink": 4, "recent": 50}}),
        ("window_language:1,2,300", {"window_language": {"sink": 1, "recent": 2, "language_recent": 300}}),
    ],
)
def test_retention_has_a_short_form(text, expected):
    assert terminal.retention(text) == expected


@pytest.mark.parametrize("text", ["", "window", "window:4", "window:4,x", "window:4,50,6", "ring:1,2", "full:1"])
def test_a_wrong_retention_says_what_is_right(text, capsys):
    with pytest.raises(SystemExit):
        cli.parser().parse_args(["converse", "--out", "x", "--retention", text])
    assert "expected full, window:SINK,RECENT" in capsys.readouterr().err


def test_help_teaches_by_example(capsys):
    with pytest.raises(SystemExit):
        cli.parser().parse_args(["--help"])
    assert "python -m client converse --audio" in capsys.readouterr().out


async def test_control_c_keeps_the_conversation_so_far(start_fake, tmp_path):
    fake, _ = await start_fake()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "client", "converse", "--url", fake.url, "--text", "hi", "--tail", "60",
        "--out", str(tmp_path), cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        while len(fake.seen) < 3 and process.returncode is None:
            await asyncio.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, errors.decode()
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["stopped_early"] is True
    assert data["units"]["sent"] == data["units"]["answered"] >= 3
    assert (tmp_path / "conversation.mp4").stat().st_size > 1000
    assert fake.seen[-1].end
