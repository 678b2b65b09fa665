"""The processes of a fleet on this machine: servers on ports of their own, and the HAProxy of build/deploy in front."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ..own_server import START_SECONDS, ServerFailed, ends_with_us, tail

CONFIG = Path(__file__).parents[2] / "build" / "deploy" / "haproxy.cfg"
PORTS: tuple[str, ...] = ("grpc", "metrics", "health", "agent")
BALANCER_SECONDS = 10.0


def haproxy() -> str:
    """The program. ServerFailed where there is none."""
    found = shutil.which("haproxy", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if found is None:
        raise ServerFailed("expected haproxy, got none: apt-get install haproxy")
    return found


def free_ports(count: int) -> list[int]:
    """Ports that nobody has now. They stay free for a server that is stopped and started again."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Member:
    """One server of the fleet, by the name that the balancer has for it. Started again, it has the same ports."""

    def __init__(self, name: str, engines: Path, run: Path, *arguments: str) -> None:
        self.name, self.ports = name, dict[str, int](zip(PORTS, free_ports(len(PORTS)), strict=True))
        self.log = run / f"{name}.launch.log"
        self._command = [sys.executable, "-m", "triton_models.launch", "--engines", str(engines), "--runs", str(run)]
        self._command += ["--name", name, "--fleet-key", str(run / "fleet.key"), *arguments]
        for port, number in self.ports.items():
            self._command += [f"--{port}-port", str(number)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                ends_with_us(self._command), stdout=out, stderr=out, start_new_session=True
            )

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        return None if self._process is None else self._process.poll()

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def said(self) -> dict[str, Any] | None:
        """What /ready says, with yes or no; None where nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['health']}/ready", timeout=2) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return json.load(error)
        except (OSError, ValueError):
            return None

    def wait_ready(self, seconds: float = START_SECONDS) -> None:
        end = time.monotonic() + seconds
        while not (self.said() or {}).get("ready"):
            if not self.runs or time.monotonic() > end:
                raise ServerFailed(f"{self.name} was not ready within {seconds:g} s\n{tail(self.log)}")
            time.sleep(0.1)

    def drain(self) -> None:
        """Takes no new sessions, and ends when the last one has ended, or its drain time."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """As if the machine were gone: tritonserver goes with its launcher."""
        self._signal(signal.SIGKILL)

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Its launcher, which answers the balancer's questions, stands still; tritonserver goes on."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def wait(self, seconds: float) -> int:
        """The exit code. TimeoutExpired if it does not come."""
        return self._process.wait(seconds) if self._process is not None else 0

    def stop(self) -> None:
        for end in (self.drain, self.drain, self.kill):
            if self.runs:
                end()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.wait(15.0)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)


class Program:
    """A process beside the servers that ends with its block; a subclass starts it where the block begins."""

    end_seconds = 10.0  # for which it may take to end when it is asked to
    _process: subprocess.Popen[bytes] | None = None

    def _begin(self, command: Sequence[str], log: Path, **environment: str) -> None:
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                ends_with_us(command), stdout=out, stderr=out, env=os.environ | environment, start_new_session=True
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(self.end_seconds)


class Balancer(Program):
    """HAProxy with the configuration of build/deploy, on other ports. `url` is where clients go, `pages` where browsers
    do; `gateways` are the ports at which it looks for gateways."""

    def __init__(self, run: Path, members: Sequence[Member]) -> None:
        self.log = run / "haproxy.log"
        sessions, pages, figures, *self.gateways = free_ports(5)
        self.url, self.pages, self.figures = (f"127.0.0.1:{port}" for port in (sessions, pages, figures))
        text = CONFIG.read_text()
        for old, new in ((":8001", sessions), (":8080", pages), (":8500", figures)):
            text = text.replace(f"bind {old}", f"bind 127.0.0.1:{new}")
        for number, member in enumerate(members, 1):
            for port, digit in (("grpc", 1), ("health", 3), ("agent", 4)):
                text = re.sub(rf"\b8{digit}0{number}\b", str(member.ports[port]), text)
        for number, port in enumerate(self.gateways, 1):
            text = text.replace(f"127.0.0.1:808{number} ", f"127.0.0.1:{port} ")
        self._config = run / "haproxy.cfg"
        self._config.write_text(text)
        self._key = (run / "fleet.key").read_text()

    def __enter__(self) -> Balancer:
        self._begin([haproxy(), "-db", "-f", str(self._config)], self.log, FLEET_KEY=self._key)
        return self

    def servers(self, backend: str = "servers") -> dict[str, dict[str, str]]:
        """HAProxy's own view of each server of a backend: status, weight, scur (streams now), stot (so far)."""
        with urllib.request.urlopen(f"http://{self.figures}/stats;csv", timeout=2) as answer:
            head, *rows = (line.split(",") for line in answer.read().decode().removeprefix("# ").splitlines())
        found = [dict(zip(head, row, strict=False)) for row in rows]
        return {row["svname"]: row for row in found if row["pxname"] == backend and row["svname"] not in _TOTALS}

    def wait(self, up: int, seconds: float = BALANCER_SECONDS) -> None:
        """Until it gives new sessions to `up` servers, or fewer if those are full."""
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError):
                if sum(row["status"].startswith("UP") for row in self.servers().values()) == up:
                    return
            if time.monotonic() > end:
                raise ServerFailed(f"haproxy did not see {up} servers within {seconds:g} s\n{tail(self.log)}")
            time.sleep(0.05)


_TOTALS = ("FRONTEND", "BACKEND")


@contextlib.contextmanager
def fleet(
    engines: Path, run: Path, names: Sequence[str], *arguments: str, up: int | None = None
) -> Iterator[tuple[list[Member], Balancer]]:
    """Members, the first `up` of them ready (all, unless given), and the balancer that sees them. Names: `s1`, `s2` ..
    as in haproxy.cfg."""
    run.mkdir(parents=True, exist_ok=True)
    key = run / "fleet.key"
    key.unlink(missing_ok=True)
    key.touch(0o600)
    key.write_text(secrets.token_hex(32))
    members = [Member(name, engines, run, *arguments) for name in names]
    try:
        for member in members[:up]:
            member.start()
        for member in members[:up]:
            member.wait_ready()
        with Balancer(run, members) as balancer:
            balancer.wait(len(members[:up]))
            yield members, balancer
    finally:
        for member in members:
            if member.runs:
                member.drain()
        for member in members:
            member.stop()
