"""The judge beside every attack and fault: one paced session, in a process of its own, that says how it fared.

    python tests/chaos/healthy.py HOST:PORT OUT

talks until it is told to end (SIGTERM), session after session; when one is lost it starts the next, as a user would who
presses the button again. A line of OUT is one unit (`lag`: seconds from the unit to its answer; `digest` of what was
heard, seen and read), or one thing that went wrong. Every session says the same, so every answer to unit k has to be
the same, bit for bit.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
UNIT_SECONDS = 0.16
LENGTH = 60  # units of a session
RETRY_SECONDS = 0.1
SETTLED = 3  # first units of a session: the server gets warm


@dataclass
class Judgement:
    """What the session met between two moments."""

    units: int = 0
    on_time: int = 0
    changed: list[int] = field(default_factory=list)  # units that were answered otherwise than in quiet
    errors: list[str] = field(default_factory=list)
    silence: float = 0.0  # longest, in seconds, between two answers

    @property
    def share(self) -> float:
        return self.on_time / self.units if self.units else 0.0


class Healthy:
    """The session as a process. `judge` looks at what it met since a moment (time.monotonic())."""

    def __init__(self, address: str, out: Path) -> None:
        self.out = out
        out.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, __file__, address, str(out)], env={**os.environ, "PYTHONPATH": str(ROOT)}
        )

    def lines(self) -> list[dict[str, Any]]:
        if not self.out.exists():
            return []
        whole = self.out.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def wait_units(self, count: int, seconds: float) -> None:
        """Until that many more units were answered. AssertionError says what came instead."""
        goal, end = len(self.answers()) + count, time.monotonic() + seconds
        while len(self.answers()) < goal:
            assert time.monotonic() < end, f"expected {count} more answers in {seconds:g} s; {self.lines()[-3:]}"
            assert self.process.poll() is None, "the healthy session's process has ended"
            time.sleep(0.05)

    def answers(self) -> list[dict[str, Any]]:
        return [line for line in self.lines() if "unit" in line]

    def judge(self, since: float, reference: dict[int, str], until: float = float("inf")) -> Judgement:
        """Of units answered from `since` on. `reference`: digests of quiet, by unit; what it has not is learned."""
        found, last = Judgement(), since
        for line in self.lines():
            if not since <= line["at"] <= until:
                continue
            if "unit" not in line:
                found.errors.append(line["error"])
                continue
            found.silence, last = max(found.silence, line["at"] - last), line["at"]
            if reference.setdefault(line["unit"], line["digest"]) != line["digest"]:
                found.changed.append(line["unit"])
            if line["unit"] >= SETTLED:
                found.units += 1
                found.on_time += line["lag"] <= UNIT_SECONDS
        return found

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(5)
        finally:
            self.process.kill()


def units(shape: Any) -> Iterator[Any]:
    """A user who makes noise; unit k is the same in every session."""
    from client.stream.units import UserUnit

    for k in range(LENGTH):
        rng = np.random.default_rng([7, k])
        pcm = rng.uniform(-0.3, 0.3, shape.samples).astype(np.float32)
        yield UserUnit(k, pcm, rng.integers(0, 256, shape.frames, np.uint8), end=k == LENGTH - 1)


async def talk(address: str, out: Any) -> None:
    """One session until it fails. `lag` counts from when the unit was complete, not from when it could be sent."""
    from client.stream import DuplexClient, Pacer

    pacer = Pacer()
    async with (
        await DuplexClient.connect(address, timeout=2.0) as client,
        client.session(options={"seed": 3}, timeout=10.0) as session,
    ):
        sending = asyncio.create_task(session.play(units(client.shape), pacer))
        try:
            async for answer in session:
                said = answer.pcm.tobytes() + answer.frames.tobytes() + f"{answer.state} {answer.text}".encode()
                lag = answer.received - pacer.due(answer.unit_index)
                tell(
                    out,
                    unit=answer.unit_index,
                    lag=round(lag, 4),
                    digest=hashlib.blake2b(said, digest_size=8).hexdigest(),
                )
        finally:
            sending.cancel()


def tell(out: Any, **what: Any) -> None:
    out.write(json.dumps({"at": time.monotonic(), **what}) + "\n")
    out.flush()


async def main(address: str, path: str) -> None:
    from client.stream import DuplexError

    with open(path, "a") as out:
        while True:
            try:
                await talk(address, out)
            except DuplexError as error:
                tell(out, error=str(error)[:300])
                await asyncio.sleep(RETRY_SECONDS)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    asyncio.run(main(*sys.argv[1:3]))
