"""A server, the healthy session beside it, and what every row of the table looks at before and after."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from healthy import Healthy, Judgement
from real_server import Server

from triton_models.launcher.server_process import process_lives
from triton_models.launcher.supervisor import STEADY_SECONDS

RECOVERY_SECONDS = 60.0  # until a row gives up; the table says how long it took
LEFT_SECONDS = 5.0  # for what was killed to be gone


@dataclass
class Result:
    """A line of the table."""

    row: str
    happened: str
    judged: Judgement
    recovery: float | None = None  # seconds from the fault to the next answer; None: the session went on
    left: list[str] = field(default_factory=list)  # processes and shared memory that nobody owns
    wrong: list[str] = field(default_factory=list)

    def cells(self) -> list[str]:
        judged = self.judged
        output = "changed" if judged.changed else "bit-equal"
        recovery = "no outage" if self.recovery is None else f"{self.recovery:.1f} s"
        share = f"{judged.share:.0%} of {judged.units}" if judged.units else "none in between"
        return [self.row, self.happened, share, output, recovery, ", ".join(self.left) or "nothing"]


HEAD = ("attack or fault", "what happened", "healthy session on time", "its output", "recovery", "left behind")


def table(results: list[Result]) -> str:
    lines = [HEAD, ["---"] * len(HEAD), *(result.cells() for result in results)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


class House:
    """`run` makes one row. Servers of a row's own come from `server`."""

    def __init__(self, engines: Path, runs: Path, *arguments: str, healthy: bool = True) -> None:
        self.engines, self.runs = engines, runs
        self.arguments = ("--keep-steps", *arguments)
        self.main = Server(engines, runs, *self.arguments, name="main")
        self.main.wait_ready()
        self.reference: dict[int, str] = {}  # what the healthy session hears in quiet, by unit
        self.healthy = Healthy(self.main.info["grpc"], runs / "healthy.jsonl")
        self._own = 0

    def learn(self, units: int) -> Judgement:
        """What the session hears while nobody disturbs it."""
        begin = time.monotonic()
        self.healthy.wait_units(units, 60 + units)
        return self.healthy.judge(begin - 60, self.reference)

    def run(self, name: str, act: Callable[[House], str], outage: bool = False) -> Result:
        """outage: the server is expected to start anew, and its sessions to be lost."""
        self.main.wait_ready()
        self.healthy.wait_units(3, RECOVERY_SECONDS)
        if outage:
            time.sleep(STEADY_SECONDS)  # who falls again sooner is a crash loop, which has to wait
        restarts, pids = self.main.health()[1]["restarts"], self.main.pids()
        begin = time.monotonic()
        wrong: list[str] = []
        try:
            happened = act(self)
        except Exception as error:  # a row that fails says so in the table
            happened, wrong = f"FAILED: {type(error).__name__}: {str(error)[:200]}", ["the row itself failed"]
        with contextlib.suppress(AssertionError):
            self.main.wait_ready()
        try:
            self.healthy.wait_units(3, RECOVERY_SECONDS)
        except AssertionError as error:
            wrong.append(str(error)[:200])
        judged = self.healthy.judge(begin, self.reference)
        recovery = judged.silence if judged.errors else None
        if judged.changed:
            wrong.append(f"answers changed: units {judged.changed[:5]}")
        # A start that is put off, or does not get through, loses no session: the table says when the next answer came.
        put_off = ("RESOURCE_EXHAUSTED", "was not ready within")
        lost = [error for error in judged.errors if not any(words in error for words in put_off)]
        if not outage and lost:
            wrong.append(f"the session was lost: {lost[0][:160]}")
        restarted = self.main.health()[1].get("restarts", 0) - restarts
        if not outage and restarted:
            wrong.append(f"{restarted} restarts")
        return Result(name, happened, judged, recovery, self._left(pids), wrong)

    @contextlib.contextmanager
    def server(self, *arguments: str, ready: bool = True, **more: Any) -> Iterator[Server]:
        self._own += 1
        given = {"engines": self.engines, "name": f"own{self._own}", **more}
        server = Server(given.pop("engines"), given.pop("runs", self.runs), *self.arguments, *arguments, **given)
        try:
            if ready:
                server.wait_ready()
            yield server
        finally:
            server.stop()

    def stop(self) -> int:
        self.healthy.stop()
        return self.main.stop()

    def _left(self, before: list[int]) -> list[str]:
        """Processes of before that live and are the server's no more, and shared memory of no running server."""
        end = time.monotonic() + LEFT_SECONDS
        while True:
            now = self.main.pids()
            left = [f"process {pid}" for pid in set(before) - set(now) if process_lives(pid)]
            if not left or time.monotonic() > end:
                return left
            time.sleep(0.1)


def left_of(server: Server, pids: list[int], shm_prefix: str) -> list[str]:
    """Of a server that has ended."""
    end = time.monotonic() + LEFT_SECONDS
    while True:
        left = [f"process {pid}" for pid in pids if pid and process_lives(pid)]
        left += [path.name for path in Path("/dev/shm").iterdir() if path.name.startswith(shm_prefix)]
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.1)
