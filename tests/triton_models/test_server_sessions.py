"""Conversations through a real server: the contract, independence of sessions, and what is left behind."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc

from engine_builder.config import UNIT_MS

pytestmark = pytest.mark.server


def same(a: Any, b: Any) -> bool:
    """Equal but for rounding, which may differ with the shape of the batch."""
    close = np.allclose(a.pcm, b.pcm, atol=1e-4) and int(np.abs(a.frames.astype(int) - b.frames).max()) <= 1
    return (a.unit, a.state, a.text, a.heard) == (b.unit, b.state, b.text, b.heard) and close


def test_shapes_are_in_the_metadata(server: Any) -> None:
    client = grpc.InferenceServerClient(server.info["grpc"])
    metadata = client.get_model_metadata("duplex", as_json=True)
    assert metadata is not None
    audio, video = server.manifest.model.audio, server.manifest.model.video
    sound = {"name": "pcm", "datatype": "FP32", "shape": [str(audio.unit_samples)]}
    frames = {"name": "frames", "datatype": "UINT8", "shape": ["4", str(video.height), str(video.width), "3"]}
    assert sound in metadata["inputs"]
    assert sound in metadata["outputs"]
    assert frames in metadata["inputs"]
    assert frames in metadata["outputs"]
    assert {t["name"] for t in metadata["outputs"]} == {"unit_index", "state", "text", "pcm", "frames", "info", "heard"}
    config = client.get_model_config("duplex", as_json=True)
    assert config is not None
    assert config["config"]["parameters"]["weights"]["string_value"] == server.manifest.weights
    client.close()


def test_a_response_carries_everything(server: Any) -> None:
    stream = server.stream()
    answer = stream.ask(1, 0, text="hello", end=True, options={"solver_steps": 3})
    config = server.manifest.model
    assert answer.state in config.language.states
    assert answer.pcm.dtype == np.float32
    assert answer.pcm.shape == (config.audio.unit_samples,)
    assert np.isfinite(answer.pcm).all()
    assert answer.frames.shape == (4, config.video.height, config.video.width, 3)
    ms = answer.info["ms"]
    assert set(ms) == {"queue", "perceive", "think", "perform", "render", "total"}
    assert sum(ms.values()) - ms["total"] == pytest.approx(ms["total"], abs=0.01)
    assert min(ms.values()) >= 0
    assert answer.info["steps"] == 3
    assert answer.info["degradation"] == []


def test_a_session_replays_bit_for_bit(server: Any) -> None:
    stream = server.stream()
    runs = [[stream.ask(key, unit, options={"seed": 3} if unit == 0 else None) for unit in range(4)] for key in (1, 2)]
    for a, b in zip(*runs, strict=True):
        assert np.array_equal(a.pcm, b.pcm)
        assert np.array_equal(a.frames, b.frames)
    other = [stream.ask(3, unit, options={"seed": 4} if unit == 0 else None) for unit in range(4)]
    assert not np.array_equal(other[-1].pcm, runs[0][-1].pcm)
    for key in (1, 2, 3):
        stream.ask(key, 4, end=True)


def test_a_persona_is_heeded_and_a_bad_one_refused(server: Any) -> None:
    stream, config = server.stream(), server.manifest.model
    face = np.full((config.video.height, config.video.width, 3), 200, np.uint8)
    voice = (9000 * np.sin(np.arange(3 * config.audio.unit_samples) / 7)).astype("<i2")
    given = {name: base64.b64encode(part.tobytes()).decode() for name, part in (("picture", face), ("voice", voice))}
    refused = stream.refused(1, 0, options={"persona": {**given, "picture": "AAAA"}})
    assert "INVALID_ARGUMENT: options.persona.picture: expected" in refused
    chosen: tuple[dict[str, Any], ...] = ({"persona": given}, {}, {"persona": given})
    with_it, without, again = (
        stream.ask(key, 0, options={"seed": 3, **options}, end=True) for key, options in enumerate(chosen, 2)
    )
    assert np.array_equal(with_it.pcm, again.pcm)
    assert not np.array_equal(with_it.pcm, without.pcm)


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_loudspeaker_is_noticed(server: Any, cancelled: bool) -> None:
    """What the agent said comes back at half its level, and nothing else is in the microphone."""
    stream = server.stream()
    answers = [stream.ask(1, 0, options={} if cancelled else {"echo_canceller": False})]
    for unit in range(1, 16):
        answers.append(stream.ask(1, unit, pcm=0.5 * answers[-1].pcm, end=unit == 15))
    assert any("echo" in answer.info for answer in answers) == cancelled


def test_interleaved_sessions_equal_each_alone(server: Any) -> None:
    """Integer and string ids, different voices, prompts, seeds and retention; always two units under way."""
    starts = {
        41: {"seed": 1, "prompt": "be kind", "retention": "full"},
        "the other one": {"seed": 2, "retention": {"window": {"sink": 1, "recent": 3}}},
    }
    units = 12
    alone: dict[int | str, list[Any]] = {}
    stream = server.stream()
    for voice, (key, options) in enumerate(starts.items()):
        alone[key] = [
            stream.ask(
                key, unit, voice=voice, options=options if unit == 0 else None, text="hi" * (unit == 2), end=unit == 11
            )
            for unit in range(units)
        ]
    streams = {key: server.stream() for key in starts}
    together: dict[int | str, list[Any]] = {key: [] for key in starts}
    for unit in range(units):
        for voice, (key, options) in enumerate(starts.items()):
            options = options if unit == 0 else None
            streams[key].send(key, unit, voice=voice, options=options, text="hi" * (unit == 2), end=unit == 11)
            if unit:
                together[key].append(streams[key].next())
    for key in starts:
        together[key].append(streams[key].next())
        assert len(alone[key]) == len(together[key]) == units
        for a, b in zip(alone[key], together[key], strict=True):
            assert not b.error, b.error
            assert same(a, b), f"unit {a.unit} of {key!r}"
    assert not same(alone[41][-1], alone["the other one"][-1])


def test_hold_open_keeps_the_stream_until_the_end(server: Any) -> None:
    stream = server.stream()
    stream.ask("s", 0, options={"hold_open": True})
    stream.ask("s", 1)
    stream.ask("s", 2, end=True)
    assert stream.silent(), "one answer a unit and nothing else"


def test_a_killed_client_frees_its_pages(server: Any, tmp_path: Path) -> None:
    """The other end of the stream is a process that dies of SIGKILL in mid-conversation."""
    path = tmp_path / "client.py"
    path.write_text(
        f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from real_server import Stream
from engine_builder.manifest import Manifest
stream = Stream({server.info["grpc"]!r}, Manifest.load(Path({server.info["engines"]!r})))
unit = 0
while True:
    stream.ask("doomed", unit, options={{"hold_open": True}} if unit == 0 else None)
    print(unit, flush=True)
    unit += 1
"""
    )
    client = subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE)
    assert client.stdout is not None
    try:
        for _ in range(5):
            client.stdout.readline()
        server.wait(lambda: server.model("thinker")["pages.used"] > 0, 5, "a session that owns pages")
    finally:
        client.kill()
        client.wait()
    server.wait(server.free_again, 20, "the pages of a killed client")
    other = server.stream()
    other.ask("doomed", 0, end=True)


def test_a_cancelled_stream_frees_its_session(server: Any) -> None:
    stream = server.stream()
    stream.ask("s", 0, options={"hold_open": True})
    stream.close(cancel=True)
    server.wait(server.free_again, 20, "the session of a cancelled stream")


def test_an_idle_session_hears_its_end(start_server: Any) -> None:
    server = start_server(constants={"IDLE_SECONDS": 0.7})
    stream = server.stream()
    stream.ask("s", 0, options={"hold_open": True})
    answer = stream.next()
    assert "ABORTED: session 's' has ended: idle for 0.7 s" in answer.error
    assert "NOT_FOUND: sequence_id: session 's' has ended (idle for 0.7 s)" in stream.refused("s", 1)
    server.wait(server.free_again, 20, "the pages of an idle session")


def test_cores_stay_awake_while_somebody_talks(server: Any) -> None:
    """Where this user may ask for it: elsewhere the launcher says so and serves all the same."""
    device = "/dev/cpu_dma_latency"
    stream = server.stream()
    stream.ask("s", 0, options={"hold_open": True})

    def held(pid: int) -> bool:
        files = Path(f"/proc/{pid}/fd")
        return device in [os.path.realpath(file) for file in files.iterdir()]

    assert server.info["awake"] == os.access(device, os.W_OK)
    if server.info["awake"]:
        server.wait(lambda: held(server.process.pid), 5, "a launcher that holds the device")
    assert not any(held(pid) for pid in server.pids()), "what inherits the file would hold it for ever"
    stream.ask("s", 1, end=True)


def test_threads_share_their_memory(server: Any) -> None:
    """A soak's `duplex` grew by 4% an hour: it filled 15 of glibc's arenas (64 MiB of addresses each)."""
    streams = [server.stream() for _ in range(4)]
    for unit in range(6):
        for number, stream in enumerate(streams):
            stream.send(f"share-{number}", unit, end=unit == 5)
        for stream in streams:
            assert stream.next().unit == unit
    for pid in set(server.info["model_pids"].values()):
        places = [line.split() for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
        rooms = [(*(int(end, 16) for end in place[0].split("-")), place[1]) for place in places if len(place) == 5]
        arenas = sum(
            begin % (64 << 20) == 0 and mode == "rw-p" and end == rest and until == begin + (64 << 20)
            for (begin, end, mode), (rest, until, _) in pairwise(rooms)
        )
        assert arenas <= 2, pid


def test_no_process_of_the_server_knows_torch(server: Any) -> None:
    for pid in server.pids():
        assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()


def test_everything_listens_on_loopback_only(server: Any) -> None:
    import psutil

    ports = set()
    for pid in [server.process.pid, *server.pids()]:
        for connection in psutil.Process(pid).net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                assert connection.laddr.ip.removeprefix("::ffff:") == "127.0.0.1"
                ports.add(connection.laddr.port)
    wanted = {int(server.info[name].rsplit(":", 1)[1]) for name in ("grpc", "metrics", "health")}
    assert ports == wanted


def test_a_real_time_conversation_is_answered_in_time_on_the_whole(server: Any) -> None:
    """Pacing works; how fast units are is a benchmark's business, here all of them must come, in order."""
    stream = server.stream()
    begin = time.monotonic()
    for unit in range(8):
        time.sleep(max(0.0, begin + unit * UNIT_MS / 1000 - time.monotonic()))
        stream.send("s", unit, end=unit == 7)
        answer = stream.next()
        assert answer.unit == unit, answer.error
    assert json.dumps(answer.info)
