"""Parts of the server die, and it is told to stop: nobody waits in silence, and nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from triton_models.launcher.server_process import wait_until_gone

pytestmark = pytest.mark.server

HOLD = {"hold_open": True}


@pytest.mark.parametrize("victim", ["thinker", "duplex", "tritonserver"])  # the performer is the thinker's process
def test_a_killed_part_is_noticed_told_and_restarted(server: Any, victim: str) -> None:
    restarts = server.health()[1]["restarts"]
    pids = server.pids()
    busy, idle = server.stream(), server.stream()
    idle.ask("idle", 0, options=HOLD)
    busy.ask("busy", 0, options=HOLD)
    busy.ask("busy", 1)
    os.kill(server.info["server_pid"] if victim == "tritonserver" else server.info["model_pids"][victim], 9)
    busy.try_send("busy", 2)  # on its way into a part that is dead
    server.wait(lambda: not server.health()[0], 20, "readiness to turn false")
    server.wait(lambda: victim in server.health()[1]["reason"] or server.health()[0], 10, "the reason")
    for stream, key in ((busy, "busy"), (idle, "idle")):
        error = stream.next().error
        assert error, f"{key}: expected an error"
        if victim == "thinker":
            assert "UNAVAILABLE" in error
    server.wait_ready(restarts + 1)
    assert wait_until_gone(pids, 20), "every process of the old server is gone"
    assert not set(server.pids()) & set(pids)
    server.stream().ask("busy", 0, end=True)


def test_a_hung_model_is_noticed(start_server: Callable[..., Any]) -> None:
    server = start_server()
    stream = server.stream()
    stream.ask("s", 0, options=HOLD)
    pids = server.pids()
    os.kill(server.info["model_pids"]["thinker"], signal.SIGSTOP)
    server.wait(lambda: not server.health()[0], 30, "readiness to turn false")
    assert "UNAVAILABLE" in stream.next().error
    server.wait_ready(1)
    assert wait_until_gone(pids, 20)


def test_a_server_that_dies_again_and_again_is_given_up(start_server: Callable[..., Any]) -> None:
    server = start_server("--max-restarts", "1")
    for restarts in range(2):
        server.wait_ready(restarts)
        os.kill(server.info["server_pid"], 9)
    assert server.process.wait(60) == 1
    assert "giving up after 1 restarts" in server.log.read_text()
    assert server.shared_memory() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_in_mid_conversation_ends_in_good_order(start_server: Callable[..., Any], number: int) -> None:
    server = start_server()
    pids = server.pids()
    busy, idle = server.stream(), server.stream()
    idle.ask("idle", 0, options=HOLD)
    busy.ask("busy", 0, options=HOLD)
    server.process.send_signal(number)
    heard: list[str] = []
    unit = 1
    while not heard and unit < 200:  # the client talks on, at its own pace
        busy.try_send("busy", unit)
        answer = busy.next()
        if answer.error:
            heard.append(answer.error)
        else:
            assert answer.unit == unit
        unit += 1
        time.sleep(0.05)
    assert "UNAVAILABLE" in heard[0]
    assert "shutting down" in heard[0]
    assert "UNAVAILABLE: session 'idle' has ended: the server is shutting down" in idle.next().error
    server.close_streams()  # for one that stays open Triton waits in vain
    assert server.process.wait(60) == 0
    assert wait_until_gone(pids, 20)
    assert server.shared_memory() == []
    assert server.info["state"] == "stopped"
    log = (server.directory / "server.log").read_text()
    assert "Exit timeout expired" not in log, "Triton ended under its own threads, which may be signal 11"


def test_an_open_unit_is_answered_before_the_end(start_server: Callable[..., Any]) -> None:
    server = start_server()
    stream = server.stream()
    stream.ask("s", 0)
    with server.held():
        for unit in (1, 2, 3):
            stream.send("s", unit)
        assert "RESOURCE_EXHAUSTED" in stream.next().error, "the two before it are with the server"
        server.process.send_signal(signal.SIGTERM)
    assert [stream.next().unit for _ in range(2)] == [1, 2]
    assert server.process.wait(60) == 0


def test_a_killed_launcher_takes_its_server_along(start_server: Callable[..., Any]) -> None:
    """With a session in the middle of a unit: stubs that wait for an answer go too."""
    server = start_server()
    pids = server.pids()
    stream = server.stream()
    stream.ask("s", 0, options={**HOLD, "solver_steps": 16})
    for unit in (1, 2):
        stream.send("s", unit)
    server.process.kill()
    server.process.wait()
    assert wait_until_gone(pids, 60), "no process outlives its launcher"


def test_a_new_launcher_cleans_up_after_a_killed_one(start_server: Callable[..., Any]) -> None:
    first = start_server()
    pids = first.pids()
    first.process.kill()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
    assert wait_until_gone(pids, 20)
    left = first.shared_memory()
    assert left != [], "this is what a crash leaves"
    second = start_server()
    assert second.process.pid != first.process.pid
    assert not set(left) & set(os.listdir("/dev/shm"))
    second.stream().ask("s", 0, end=True)
    assert second.stop() == 0
    assert second.shared_memory() == []


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    ports = [item for name in ("grpc", "metrics", "health") for item in (f"--{name}-port", "0")]
    command = [sys.executable, "-m", "triton_models.launch", *arguments, *ports]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_two_servers_of_one_name_are_refused(server: Any, mini_engines: Path) -> None:
    run = server.directory
    done = launch("--engines", str(mini_engines), "--runs", str(run.parent), "--name", run.name)
    assert done.returncode == 2
    assert "expected no server of this name, got one that runs" in done.stderr
    server.stream().ask("s", 0, end=True)


def test_altered_engines_are_refused_before_anything_starts(mini_engines: Path, tmp_path: Path) -> None:
    engines = tmp_path / "engines"
    shutil.copytree(mini_engines, engines)
    path = engines / "think.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    done = launch("--engines", str(engines), "--runs", str(tmp_path / "runs"))
    assert done.returncode == 2
    assert "think.onnx has SHA-256" in done.stderr
    assert "rebuild: python -m engine_builder build" in done.stderr
    assert not (tmp_path / "runs").exists(), "refused before anything is written or started"
