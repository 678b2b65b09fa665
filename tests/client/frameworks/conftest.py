"""Unmodified packages, each in an environment of its own below build/clients/, and one server and gateway for all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import pytest
from runs import RUNS, Run
from words import write_user

from client.own_server import server
from tests.own_gateway import own_gateway

ROOT = Path(__file__).parents[3]
PINS = Path(__file__).parent / "pins"
CLIENTS = ROOT / "build/clients"
CHECKPOINT = ROOT / "checkpoints/tutor"
AT_ONCE = 3  # conversations; each lasts about 40 s, and two cores are to keep real time
INSTALL_SECONDS, TALK_SECONDS = 240.0, 150.0
_installing = {run.package: threading.Lock() for run in RUNS.values()}


def environment(name: str) -> Path:
    """The folder with the pinned packages of `name`, made once. Fails where they cannot be installed."""
    pins = PINS / f"{name}.txt"
    wanted = hashlib.sha256(pins.read_bytes() + sys.version.encode()).hexdigest()
    folder = CLIENTS / f"{name}-{wanted[:10]}"
    if not (folder / ".ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if name == "openai-js":
            _run(["npm", "install", "--silent", "--no-audit", "--no-fund", *pins.read_text().split()], folder)
        else:
            _run([sys.executable, "-m", "venv", str(folder)], folder)
            quiet = ["-q", "--disable-pip-version-check", "--no-deps"]
            _run([str(folder / "bin/python"), "-m", "pip", "install", *quiet, "-r", str(pins)], folder)
        (folder / ".ready").touch()
    return folder


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def _engines() -> Path:
    """Of the tutor; built anew when the checkpoint or the builder is another."""
    from engine_builder.build import BuildOptions, build_engines

    known = hashlib.sha256()
    sources = [
        *filter(Path.is_file, CHECKPOINT.iterdir()),
        *(ROOT / "engine_builder").glob("*.py"),
        *(ROOT / "engine_builder/model").rglob("*.py"),
    ]
    for path in sorted(sources):
        known.update(path.read_bytes())
    directory = ROOT / "build/cache/clients" / known.hexdigest()[:10]
    if not (directory / "manifest.json").exists():
        build_engines(CHECKPOINT, directory, BuildOptions())
    return directory


@dataclass(frozen=True)
class Place:
    """Where the clients find the gateway, with and without TLS, and what they say."""

    url: str
    tls_url: str
    ca: Path
    said: Path  # see write_user


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    work = tmp_path_factory.mktemp("clients")
    write_user(work)
    with contextlib.ExitStack() as stack:
        facts = stack.enter_context(server(_engines(), work / "server", "--admit-all"))
        urls = []
        for name, more in (("plain", []), ("tls", ["--tls-loopback", str(work / "tls")])):
            gateway = stack.enter_context(own_gateway(facts["grpc"], work / f"{name}.log", *more))
            urls.append(f"{gateway.url}/v1")
        yield Place(*urls, work / "tls/cert.pem", work)


@dataclass(frozen=True)
class Talk:
    """What a client printed."""

    code: int
    output: str

    @property
    def said(self) -> str:
        """All that the agent said, in order; frameworks cut it into turns as they like."""
        return self._words("agent:")

    @property
    def heard(self) -> str:
        """The user's words in what a client keeps of the conversation."""
        return self._words("user:")

    @property
    def errors(self) -> list[str]:
        return self._lines("error:") + [line for line in self.output.splitlines() if "| ERROR" in line]

    def _words(self, start: str) -> str:
        return " ".join(" ".join(line.removeprefix(start) for line in self._lines(start)).split())

    def _lines(self, start: str) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith(start)]


def _talk(run: Run, place: Place) -> Talk:
    with _installing[run.package]:
        folder = environment(run.package)
    url = place.tls_url if run.tls else place.url
    command = run.command(folder, url, place.said)
    variables = {**os.environ, "WAN_URL": url, "NODE_EXTRA_CA_CERTS": str(place.ca), "PYTHONPATH": ""}
    try:
        done = subprocess.run(
            command, cwd=folder, env=variables, capture_output=True, text=True, timeout=TALK_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as late:
        return Talk(-1, f"{late.stdout}{late.stderr}")
    return Talk(done.returncode, done.stdout + done.stderr)


class Talks:
    """Every conversation that this run's tests ask for, some at a time: they are in real time."""

    def __init__(self, pool: ThreadPoolExecutor, place: Place, wanted: Iterable[str]) -> None:
        self._place = place
        self._talks = {name: pool.submit(_talk, RUNS[name], place) for name in wanted}

    def first(self, name: str) -> Talk:
        return self._talks[name].result()

    def alone(self, name: str) -> Talk:
        """Once more, when all others are over: two cores that others took too were not real time."""
        wait(self._talks.values())
        return _talk(RUNS[name], self._place)


@pytest.fixture(scope="session")
def talks(request: pytest.FixtureRequest, place: Place) -> Iterator[Talks]:
    calls = [getattr(item, "callspec", None) for item in request.session.items]
    wanted = dict.fromkeys(call.params["client"] for call in calls if call is not None and "client" in call.params)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield Talks(pool, place, wanted)
