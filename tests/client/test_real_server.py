"""The client against a real tritonserver: what the test double cannot know."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import demo, own_server
from client.media.source import TypedText, read_source
from client.stream.client import DuplexClient
from client.stream.errors import DuplexError
from client.stream.units import UnitShape, UserUnit
from client.talk.conversation import converse

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def facts(mini_engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """server.json of a server that the demo started."""
    with own_server.server(mini_engines, tmp_path_factory.mktemp("run") / "server") as facts:
        yield facts


def quiet(shape: UnitShape, index: int, **kwargs: Any) -> UserUnit:
    return UserUnit(index, np.zeros(shape.samples, np.float32), np.zeros(shape.frames, np.uint8), **kwargs)


def models(facts: dict[str, Any]) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://{facts['health']}/ready", timeout=5) as response:
        return json.loads(response.read())["models"]


async def test_the_server_describes_itself(facts):
    async with await DuplexClient.connect(facts["grpc"]) as client:
        assert client.shape == UnitShape(samples=2560, height=32, width=32)
        assert client.parameters["weights"] == facts["weights"]
        assert client.served.unanswered == 2
        assert client.server["name"] == "triton"


async def test_a_conversation_with_the_recorded_user(facts, tmp_path):
    async with await DuplexClient.connect(facts["grpc"]) as client:
        source = read_source(
            client.shape,
            audio=demo.MEDIA / "user_speech.flac",
            video=demo.MEDIA / "user_face.mp4",
            typed=[TypedText(0.5, "good morning")],
            loop=True,
            seconds=3.2,
        )
        talk = await converse(
            client, source, tmp_path, options={"seed": 1, "retention": {"window": {"sink": 1, "recent": 8}}}
        )
    assert not talk.errors
    assert [u.index for u in talk.answered()] == list(range(20))
    assert all(set(u.stages) >= {"queue", "perceive", "think", "perform", "render", "total"} for u in talk.units)
    assert all(u.state for u in talk.units)
    heard = [talk.recording.get(unit) for unit in range(20)]
    assert all(kept is not None and np.isfinite(kept[0]).all() for kept in heard)
    talk.recording.close()


async def test_a_refused_unit_is_sent_again(facts):
    async with await DuplexClient.connect(facts["grpc"]) as client, client.session() as session:
        await session.send(quiet(client.shape, 0))
        assert (await anext(session)).unit_index == 0
        await session.send(quiet(client.shape, 5))
        with pytest.raises(DuplexError, match="unit_index: expected 1, got 5") as caught:
            await anext(session)
        assert (caught.value.code, caught.value.fatal) == ("INVALID_ARGUMENT", False)
        await session.send(quiet(client.shape, 1, end=True))
        assert [r.unit_index async for r in session] == [1]


async def test_refused_starts(facts):
    async with await DuplexClient.connect(facts["grpc"]) as client:
        async with client.session(options={"solver_steps": 999}) as session:
            await session.send(quiet(client.shape, 0))
            with pytest.raises(DuplexError, match=r"options\.solver_steps") as caught:
                await anext(session)
            assert (caught.value.code, caught.value.fatal) == ("INVALID_ARGUMENT", True)
        async with client.session("twin") as first, client.session("twin") as second:
            await first.send(quiet(client.shape, 0))
            assert (await anext(first)).unit_index == 0
            await second.send(quiet(client.shape, 0))
            with pytest.raises(DuplexError) as caught:
                await anext(second)
            assert (caught.value.code, caught.value.fatal) == ("ALREADY_EXISTS", True)
            await first.send(quiet(client.shape, 1, end=True))
            assert [r.unit_index async for r in first] == [1]


async def test_a_client_that_leaves_is_noticed(facts):
    async with await DuplexClient.connect(facts["grpc"]) as client:
        async with client.session() as session:
            await session.send(quiet(client.shape, 0))
            await anext(session)
        for _ in range(100):
            state = models(facts)
            if state["duplex"]["sessions"] == 0 and state["thinker"]["pages.used"] == 0:
                break
            await asyncio.sleep(0.1)
        else:
            pytest.fail(f"the session is still there: {state}")


async def test_a_server_that_shuts_down_says_so_and_leaves_what_was_said(mini_engines, tmp_path):
    with own_server.server(mini_engines, tmp_path / "server") as facts:
        async with await DuplexClient.connect(facts["grpc"]) as client:
            source = read_source(client.shape, typed=[TypedText(0, "hello")], tail=20)

            def leave(unit):
                if unit.index == 2:
                    os.kill(facts["launcher_pid"], signal.SIGTERM)

            talk = await converse(client, source, tmp_path, on_unit=leave)
    assert [e.code for e in talk.errors] == ["UNAVAILABLE"]
    assert 3 <= len(talk.answered()) < 60
    assert json.loads((tmp_path / "server" / "server.json").read_text())["state"] == "stopped"
    talk.recording.close()


async def test_the_demo_from_start_to_end(mini_engines, tmp_path):
    arguments = ["--engines", str(mini_engines), "--out", str(tmp_path / "demo"), "--seconds", "1.6"]
    arguments += ["--media", "recorded", "--on-time", "0"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "client.demo", *arguments, cwd=demo.MEDIA.parents[1]
    )
    assert await asyncio.wait_for(process.wait(), 120) == 0
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert report["units"] == {"sent": 10, "answered": 10, "planned": 10}
    assert "LibriVox" in report["config"]["input"]["speech"]
    for name in ("conversation.mp4", "timeline.png"):
        assert (tmp_path / "demo" / name).stat().st_size > 1000
    facts = json.loads((tmp_path / "demo" / "server" / "server.json").read_text())
    assert facts["state"] == "stopped"
    assert report["weights"] == facts["weights"]
    assert not [name for name in os.listdir("/dev/shm") if name.startswith(facts["shm_prefix"])]


async def test_the_demo_counts_what_a_model_got_right(mini_engines, tmp_path):
    folder = tmp_path / "script"
    folder.mkdir()
    shutil.copyfile(demo.MEDIA / "user_speech.flac", folder / "user.flac")
    shutil.copyfile(demo.MEDIA / "user_face.mp4", folder / "user.mp4")
    item = {"start": 0.3, "stop": 0.6, "caption": "says: seven", "words": ["eight"], "interrupts": False, "cut": False}
    events = [{**item, "kind": "say", "text": ""}]
    script = {"format": 1, "language": "en", "seconds": 1.6, "voices": "a reader", "events": events}
    (folder / "script.json").write_text(json.dumps(script))
    arguments = ["--engines", str(mini_engines), "--out", str(tmp_path / "demo"), "--script", str(folder)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "client.demo", *arguments, "--on-time", "0", cwd=demo.MEDIA.parents[1]
    )
    assert await asyncio.wait_for(process.wait(), 120) == 0, "a model that knows nothing is no fault of the server"
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert (report["script"]["right"], report["script"]["of"]) == (0, 1)
    assert report["script"]["events"][0]["expected"] == "eight"
    assert "cards drawn in" in report["config"]["input"]["face"]


async def test_a_server_that_cannot_start_says_why(tmp_path):
    with (
        pytest.raises(own_server.ServerFailed, match=r"manifest\.json"),
        own_server.server(tmp_path, tmp_path / "server"),
    ):
        pytest.fail("expected no server without engines")
