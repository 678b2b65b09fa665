"""What the launcher survives without a real server: full disks, damaged records, removed folders; and whom it kills."""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from triton_models.launcher import health, server_process
from triton_models.launcher.checks import reserve_ports
from triton_models.launcher.health import Health
from triton_models.launcher.server_process import (
    CHILD,
    ServerPlan,
    ServerProcess,
    members,
    process_lives,
    wait_until_gone,
)
from triton_models.launcher.supervisor import Supervisor, SupervisorOptions
from triton_models.service import status
from triton_models.service.status import RECORD_BYTES, Heartbeat, Record, read_status

pytestmark = pytest.mark.unit


def until(what: Any, expected: str) -> None:
    end = time.monotonic() + 20
    while not what():
        assert time.monotonic() < end, expected
        time.sleep(0.01)


def test_a_full_disk_does_not_stop_the_beat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns, full = iter(range(10**6)), [False]
    write = os.pwrite

    def pwrite(*given: Any) -> int:
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*given)

    monkeypatch.setattr(status.os, "pwrite", pwrite)
    monkeypatch.setattr(status, "BEAT_SECONDS", 0.01)
    heartbeat = Heartbeat(tmp_path, {"stage": lambda: {"turn": next(turns)}})
    heartbeat.start()
    full[0] = True
    until(lambda: next(turns) > 20, "beats that fail")
    full[0] = False
    seen = next(turns)
    until(lambda: (read_status(tmp_path, "stage") or {"turn": 0})["turn"] > seen, "beats again")
    heartbeat.stop()


def test_a_record_takes_its_room_at_once_and_none_later(tmp_path: Path) -> None:
    record = Record(tmp_path / "x")
    blocks = (tmp_path / "x").stat().st_blocks
    assert (tmp_path / "x").stat().st_size == RECORD_BYTES
    record.write({"a": "b" * 15_000})
    record.write({"a": 1})
    assert (tmp_path / "x").stat().st_blocks == blocks
    assert read_status(tmp_path, "x") == {"a": 1}
    with pytest.raises(ValueError, match="expected a record of at most 16384 bytes"):
        record.write({"a": "b" * RECORD_BYTES})
    record.close()


class Lives:
    def alive(self) -> bool:
        return True

    def answers(self) -> bool:
        return True


@pytest.mark.parametrize("damage", [b"", b"{", b"0 5 hello", b"\xff" * 100])
def test_a_damaged_record_is_no_death(damage: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "MODELS", ("stage",))
    look = Health(Lives(), tmp_path)  # pyright: ignore[reportArgumentType]
    assert look.check() == "stage is not loaded"
    record = Record(tmp_path / "stage")
    record.write({"pid": os.getpid(), "beat": time.monotonic()})
    assert look.check() is None
    (tmp_path / "stage").write_bytes(damage)
    assert look.check() is None, "the last word counts"
    look.models["stage"]["beat"] -= 60
    assert "shows no life since" in (look.check() or "")


@pytest.mark.parametrize("trouble", ["removed", "full"])
def test_what_cannot_be_written_does_not_end_the_launcher(
    trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    said: list[str] = []
    plan = ServerPlan(run / "repository", run / "backends", run / "server.log", 1, 2, "wst-none-")
    [listener] = reserve_ports([("127.0.0.1", 0)])
    supervisor = Supervisor(plan, run / "s", run / "server.json", {}, listener, SupervisorOptions(), said.append)
    supervisor._write("starting")
    assert json.loads((run / "server.json").read_text())["state"] == "starting"
    if trouble == "removed":
        (run / "server.json").unlink()
        run.rmdir()
    else:
        monkeypatch.setattr(Path, "write_text", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    supervisor._write("ready")
    assert "server.json could not be written" in said[0]
    supervisor.stop()
    assert supervisor.run() == 0


@pytest.mark.parametrize(("served", "pauses"), [(0.0, [0, 1, 2, 4, 8, 8]), (11.0, [0, 0, 0, 0, 0, 0])])
def test_only_a_crash_loop_has_to_wait(
    served: float, pauses: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = ServerPlan(tmp_path, tmp_path, None, 1, 2, "wst-none-")
    [listener] = reserve_ports([("127.0.0.1", 0)])
    options, waited = SupervisorOptions(max_restarts=9), []
    supervisor = Supervisor(plan, tmp_path, tmp_path / "server.json", {}, listener, options, lambda _: None)
    monkeypatch.setattr(supervisor._stop, "wait", waited.append)
    for _ in pauses:
        supervisor._readiness.set(True, "ready")
        supervisor._since = time.monotonic() - served
        assert supervisor._recover("thinker has died")
    assert waited == pauses
    supervisor.stop()
    assert supervisor.run() == 0


@pytest.mark.parametrize(
    ("said", "again"), [("Stub process 'duplex_0_0' is not healthy", True), ("bad engines", False)]
)
def test_a_first_start_is_tried_again_on_a_machine_that_is_too_busy(said: str, again: bool, tmp_path: Path) -> None:
    plan = ServerPlan(tmp_path, tmp_path, tmp_path / "log", 1, 2, "wst-none-")
    (tmp_path / "log").write_text(f'E1128 15:22:21.485048 14641 model_lifecycle.cc:642] "failed to load: {said}."\n')
    [listener] = reserve_ports([("127.0.0.1", 0)])
    supervisor = Supervisor(plan, tmp_path, tmp_path / "s", {}, listener, SupervisorOptions(), lambda _: None)
    assert supervisor._recover("tritonserver ended while it was starting") is again
    supervisor.stop()
    assert supervisor.run() == 0


def test_the_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_process, "LOG_BYTES", 1000)
    log = tmp_path / "server.log"
    server = ServerProcess(ServerPlan(tmp_path, tmp_path, log, 1, 2, "p"))
    server.trim_log()
    with log.open("ab") as file:  # as Triton writes
        for turn in range(100):
            file.write(b"%d " % turn * 30)
            file.flush()
            server.trim_log()
    assert log.stat().st_size < 1200
    assert (tmp_path / "server.log.1").stat().st_size < 1200


@pytest.fixture
def sleeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerProcess]:
    """A server that is a shell with a child, in place of Triton with a stub."""
    (tmp_path / "repository").mkdir()
    plan = ServerPlan(tmp_path / "repository", tmp_path, tmp_path / "log", 1, 2, f"wst-test-{os.getpid()}-")
    monkeypatch.setattr(ServerPlan, "command", lambda _: ["/bin/sh", "-c", "sleep 600 & echo $!; wait"])
    yield ServerProcess(plan)
    server_process.clean_shared_memory(plan.prefix)


def test_a_group_is_killed_once_and_while_its_number_is_ours(
    sleeper: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper.start()
    pid = sleeper.pid
    until(lambda: (sleeper.plan.log or Path()).read_text().strip().isdecimal(), "a child")
    child = int((sleeper.plan.log or Path()).read_text())
    os.kill(pid, signal.SIGKILL)
    until(lambda: not sleeper.alive(), "its end")
    assert Path(f"/proc/{pid}").exists(), "not reaped: nobody else can have the number"
    killed: list[int] = []
    kill = os.killpg
    monkeypatch.setattr(os, "killpg", lambda group, number: (killed.append(group), kill(group, number)))
    sleeper.kill()
    assert wait_until_gone([child], 5), "the stub of a dead server goes too"
    sleeper.kill()
    assert sleeper.stop()
    assert killed == [pid]


SLEEPERS = {"usual": "time.sleep(600)", "Python's lock is held": "ctypes.PyDLL(None).sleep(600)"}


@pytest.mark.parametrize("stub", SLEEPERS.values(), ids=list(SLEEPERS))
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_a_server_and_its_stubs_end_with_the_launcher(number: int, stub: str, tmp_path: Path) -> None:
    """Whatever the launcher dies of, and wherever a stub waits."""
    stub = f"import ctypes, os, pathlib, time; pathlib.Path('{tmp_path}/stub').write_text(str(os.getpid())); {stub}"
    server = f'"{sys.executable}" -c "{stub}" & exec sleep 600'
    start = (
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # ignored under nohup
        "command = [sys.executable, '-I', '-S', sys.argv[1], str(os.getpid()), '9', '/bin/sh', '-c', sys.argv[2]]\n"
        "print(subprocess.Popen(command, start_new_session=True).pid, flush=True)\n"
        "time.sleep(600)"
    )
    command = [sys.executable, "-c", start, str(CHILD), server]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    child = int(launcher.stdout.readline())
    until(lambda: (tmp_path / "stub").exists() and (tmp_path / "stub").read_text() != "", "the stub")
    group = members(child)
    assert len(group) == 3, "with the guard"
    launcher.send_signal(number)
    launcher.wait()
    assert wait_until_gone(group, 5)


def test_a_model_ends_with_its_server(tmp_path: Path) -> None:
    """A stub whose tritonserver was killed has nobody to wait for."""
    model = (
        "import sys, time; from pathlib import Path; from triton_models.service.status import Heartbeat\n"
        "Heartbeat(Path(sys.argv[1]), {'stage': dict}).start(); time.sleep(600)"
    )
    server = subprocess.Popen(["/bin/sh", "-c", f'"{sys.executable}" -c "{model}" "{tmp_path}" & wait'])
    until(lambda: read_status(tmp_path, "stage") is not None, "a beat")
    pid = (read_status(tmp_path, "stage") or {})["pid"]
    assert process_lives(pid)
    server.kill()
    server.wait()
    assert wait_until_gone([pid], 5)


def test_garbage_is_collected_and_goes_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A soak's processes grew by both: by itself the collector seldom looks at all that was made since the start."""
    returned, garbage = threading.Event(), threading.Event()
    garbage.itself = garbage  # pyright: ignore[reportAttributeAccessIssue]
    left = weakref.ref(garbage)
    gc.disable()
    del garbage
    monkeypatch.setattr(status, "TRIM_SECONDS", 0.0)
    monkeypatch.setattr(status, "_trim", lambda _: returned.set())
    beat = Heartbeat(tmp_path, {"stage": dict})
    beat.start()
    try:
        assert returned.wait(5)
        assert left() is None
    finally:
        gc.enable()
        beat.stop()
