"""A server of one's own, as a process: the client imports nothing of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

START_SECONDS, STOP_SECONDS = 120.0, 30.0
_CHILD = Path(__file__).parents[1] / "triton_models" / "launcher" / "child.py"  # a program, nothing to import


class ServerFailed(Exception):
    """The server did not come up; the message ends with the end of its log."""


def ends_with_us(command: Sequence[str]) -> list[str]:
    """The command of a process that gets SIGTERM when we end, whatever of; its program by its full path."""
    return [sys.executable, "-I", "-S", str(_CHILD), str(os.getpid()), str(int(signal.SIGTERM)), *command]


@contextlib.contextmanager
def server(engines: Path, run: Path, *arguments: str) -> Iterator[dict[str, Any]]:
    """A server for as long as the block lasts. Yields its server.json (`grpc`: host:port, `weights`, ...).

    run: directory of this server run; takes server.json, server.log and launch.log.  arguments: more for the launcher.
    """
    run.mkdir(parents=True, exist_ok=True)
    log = run / "launch.log"
    command = [sys.executable, "-m", "triton_models.launch", "--engines", str(engines), "--runs", str(run.parent)]
    command += ["--name", run.name, *arguments]
    for port in ("grpc", "metrics", "health"):
        command += [f"--{port}-port", "0"]
    with log.open("w") as out:
        # A session of its own: Ctrl-C in the terminal ends the conversation first, and that the server in good order.
        process = subprocess.Popen(ends_with_us(command), stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield _wait(process, run / "server.json", log)
    finally:
        _stop(process)


def _wait(process: subprocess.Popen[bytes], state: Path, log: Path) -> dict[str, Any]:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise ServerFailed(f"the server ended with exit code {process.returncode}\n{tail(log)}")
        with contextlib.suppress(FileNotFoundError, ValueError):
            facts = json.loads(state.read_text())
            # The file of an earlier run may still be there.
            if facts.get("state") == "ready" and facts.get("launcher_pid") == process.pid:
                return facts
        time.sleep(0.1)
    raise ServerFailed(f"the server was not ready within {START_SECONDS:g} s\n{tail(log)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM drains, a second one does not wait for that, SIGKILL is for what hangs."""
    for end in (process.terminate, process.terminate, process.kill):
        if process.poll() is None:
            end()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)


def tail(log: Path, lines: int = 4) -> str:
    last = (line[:200] for line in log.read_text(errors="replace").splitlines()[-lines:])
    return "\n".join(("the last lines of " + str(log) + ":", *last))
