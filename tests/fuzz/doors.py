"""Seeded messages at the doors of a stage and of the duplex loop, over the real checks and real engines.

Beside them one session goes on: its answers have to be those of quiet, bit for bit. Every message gets one answer, and
no thread ends.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from triton_models.backend import wire
from triton_models.runtime.duplex.contract import UnitRequest, UnitResponse
from triton_models.runtime.messages import (
    CloseJob,
    HistoryView,
    Job,
    OpenJob,
    PerceiveJob,
    PerformJob,
    SessionError,
    ThinkJob,
)
from triton_models.service.local import LocalRuntime, UserUnit

SECRET = bytes(range(32))
HEALTHY = "healthy"
BATCH = 500
ANSWER_SECONDS = 60.0
ODD: list[Any] = [None, True, -1, 0, 2**62, 1e308, float("nan"), "", "x" * 500, b"\xff", [], [[1, 2]], {}]


class Shared(AssertionError):
    """What happened to somebody else."""


class Beside:
    """The healthy session over a runtime, and what it hears in quiet."""

    def __init__(self, engines: Path, units: int = 12) -> None:
        self.runtime = LocalRuntime.load(engines, pages=1024, page_tokens=8, max_sessions=16)
        self.runtime.start()
        rng, c = np.random.default_rng(3), self.runtime.config
        shape = (4, c.video.height, c.video.width, 3)
        self.units = [
            UserUnit(rng.normal(0, 0.1, c.audio.unit_samples).astype(np.float32), rng.integers(0, 256, shape, np.uint8))
            for _ in range(units)
        ]
        self.quiet = [answer.pcm.tobytes() for answer in self.runtime.converse(self.units, name=HEALTHY)]
        self.heard = 0

    def converse(self) -> None:
        """A whole conversation, as in quiet."""
        heard = [answer.pcm.tobytes() for answer in self.runtime.converse(self.units, name=HEALTHY)]
        if heard != self.quiet:
            raise Shared(f"answers of the healthy session changed, conversation {self.heard}")
        self.heard += 1
        for name, part in self.runtime.stage.parts.items():
            if not part.worker.alive:
                raise Shared(f"the {name} has ended")


class StageDoor:
    """`seen` counts the answers by their first words."""

    def __init__(self, beside: Beside, seed: int) -> None:
        self.beside, self.random, self.seen = beside, random.Random(seed), Counter[str]()

    def run(self, messages: int) -> None:
        for begin in range(0, messages, BATCH):
            talk = threading.Thread(target=self._beside)
            self._trouble: Exception | None = None
            talk.start()
            self._batch(min(BATCH, messages - begin))
            talk.join()
            if self._trouble is not None:
                raise self._trouble

    def _beside(self) -> None:
        try:
            self.beside.converse()
        except Exception as error:
            self._trouble = error

    def _batch(self, count: int) -> None:
        futures: list[Future[Any]] = []
        for _ in range(count):
            try:
                job = wire.decode_job(self._message(), SECRET)
            except (wire.Refused, wire.WireError) as error:
                self.seen[type(error).__name__] += 1
                continue
            futures.append(self.beside.runtime.stage.submit(job))
        done, waiting = wait(futures, ANSWER_SECONDS)
        if waiting:
            raise Shared(f"{len(waiting)} jobs got no answer in {ANSWER_SECONDS:g} s")
        for future in done:
            error = future.exception()
            if error is not None and not isinstance(error, SessionError):
                raise Shared(f"not an error of one session: {error!r}")
            self.seen["answered" if error is None else getattr(error, "code", "?")] += 1

    def _message(self) -> np.ndarray:
        """Bytes that are none, a job behind another secret, one that was damaged, one of odd values, or a whole one."""
        draw, kind = self.random, self.random.random()
        if kind < 0.1:
            return np.frombuffer(draw.randbytes(draw.randrange(200)), np.uint8)
        whole = wire.encode(self._job(), draw.randbytes(32) if kind < 0.25 else SECRET)
        if kind < 0.45:
            data = bytearray(whole)
            for _ in range(draw.randrange(1, 4)):
                data[draw.randrange(32, len(data))] = draw.randrange(256)
            return np.frombuffer(bytes(data[: draw.choice([len(data), draw.randrange(len(data))])]), np.uint8)
        if kind < 0.8:
            return self._odd(whole)
        return whole

    def _odd(self, whole: np.ndarray) -> np.ndarray:
        """One field of the header gets another value."""
        length = int.from_bytes(whole[32:36].tobytes(), "little")
        fields = msgspec.msgpack.decode(whole[36 : 36 + length].tobytes())
        at = self.random.randrange(len(fields))
        fields[at] = self.random.choice(ODD)
        header = msgspec.msgpack.encode(fields)
        arrays = whole[36 + length :].tobytes()
        return np.frombuffer(SECRET + len(header).to_bytes(4, "little") + header + arrays, np.uint8)

    def _job(self) -> Job:
        """A job that fits the schema; of the healthy session only such as names its pages."""
        draw, c = self.random, self.beside.runtime.config
        name, epoch, unit = (
            f"str:fuzz-{draw.randrange(6)}#1",
            draw.choice([1, 1, 1, 2]),
            draw.choice([0, 0, 1, 7, 2**60]),
        )
        victim = draw.choice([name, f"str:{HEALTHY}#{draw.randrange(1, 400)}"])
        pages = HistoryView(
            np.array([draw.randrange(-2, 1100) for _ in range(draw.randrange(5))], np.int64),
            np.array([[draw.randrange(-1, 3), draw.randrange(12)] for _ in range(draw.randrange(5))], np.int64).reshape(
                -1, 2
            ),
        )
        samples = draw.choice([c.audio.unit_samples, c.audio.unit_samples, 0, 7])
        heard = PerceiveJob(
            name,
            epoch,
            unit,
            np.full(samples, draw.choice([0.0, np.nan, 9.0]), np.float32),
            np.zeros((4, c.video.height, draw.choice([c.video.width, 1]), 3), np.uint8),
        )
        z = np.full((draw.choice([c.video.tokens, 1]), c.video.latent_dim), draw.choice([0.0, np.inf]), np.float32)
        return draw.choice(
            [
                OpenJob(
                    name, epoch, "word " * draw.randrange(20), retention=draw.choice(["full", "some", {"window": 3}])
                ),
                heard,
                ThinkJob(name, epoch, unit, "hi", draw.choice([None, heard]), z, z, draw.choice([None, 0]), 4, 0),
                PerformJob(victim, epoch, unit, 1, draw.choice([1, 1024]), 2**62, 0, pages, draw.randbytes(16)),
                PerformJob(name, epoch, unit, 1, 4, 0, 0),
                CloseJob(name, epoch),
            ]
        )


class Reply:
    """One answer or one error, and the end; anything else is a fault of the door."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.finished = 0

    def send(self, response: UnitResponse) -> None:
        self.said.append("answered")

    def fail(self, error: SessionError) -> None:
        self.said.append(error.code)

    def finish(self) -> None:
        self.finished += 1

    def cancelled(self) -> bool:
        return False


class DuplexDoor:
    """Requests as any client may send them, in sessions beside the healthy one."""

    def __init__(self, beside: Beside, seed: int) -> None:
        self.beside, self.random, self.seen = beside, random.Random(seed), Counter[str]()
        self._units: dict[str, int] = {}  # that each session sent

    def run(self, messages: int) -> None:
        duplex = self.beside.runtime.duplex
        for begin in range(0, messages, BATCH):
            replies = [Reply() for _ in range(min(BATCH, messages - begin))]
            for number, reply in enumerate(replies):
                duplex.serve(self._request(), reply)
                if number == BATCH // 2:
                    self.beside.converse()
                if number % 20 == 19:  # or all that comes is more than the window of its session
                    self._settle()
            self._settle()
            for session in duplex.table.sessions:
                duplex._fail(duplex._conversations[session.name], SessionError("ABORTED", "the round is over"))
            end = time.monotonic() + ANSWER_SECONDS
            while any(reply.finished != 1 for reply in replies):
                if time.monotonic() > end:
                    raise Shared(f"{sum(reply.finished != 1 for reply in replies)} requests were not ended once")
                time.sleep(0.005)
            for reply in replies:
                if len(reply.said) > 2 or (len(reply.said) == 2 and reply.said[0] != "answered"):
                    raise Shared(f"a request was answered as {reply.said}")
                self.seen[reply.said[0] if reply.said else "ended"] += 1

    def _settle(self) -> None:
        end = time.monotonic() + ANSWER_SECONDS
        while any(session.in_flight for session in self.beside.runtime.duplex.table.sessions):
            if time.monotonic() > end:
                raise Shared("units of the loop got no answer")
            time.sleep(0.001)

    def _request(self) -> UnitRequest:
        """The next unit of a session, or its first; three of five have one thing odd about them."""
        draw, c = self.random, self.beside.runtime.config
        name = f"fuzz-{draw.randrange(8)}"
        unit = self._units.get(name, 0) if draw.random() < 0.85 else 0
        self._units[name] = unit + 1
        samples = np.zeros(c.audio.unit_samples, np.float32)
        fields: dict[str, Any] = {
            "key": name,
            "start": unit == 0,
            "end": draw.random() < 0.1,
            "unit": unit,
            "pcm": samples,
            "frames": np.zeros((4, c.video.height, c.video.width, 3), np.uint8),
            "text": draw.choice([b"", b"", b"hello"]),
            "options": b"" if unit else draw.choice([b"", b'{"hold_open": true}', b'{"seed": 3}']),
        }
        if draw.random() < 0.6:
            field = draw.choice(list(fields))
            fields[field] = self._odd(field, samples)
        return UnitRequest(**fields)

    def _odd(self, field: str, samples: np.ndarray) -> Any:
        draw = self.random
        if field == "pcm":
            pcm = samples.copy()
            pcm[draw.randrange(len(pcm))] = draw.choice([np.nan, np.inf, 1e30])
            return draw.choice([pcm, samples[:0], samples[:1], samples.astype(np.float64), samples[None]])
        if field == "frames":
            return np.zeros(draw.choice([(4, 8, 3, 3), (0, 8, 8, 3), (1,)]), draw.choice([np.uint8, np.float32]))
        if field == "options":
            names = ["prompt", "seed", "retention", "solver_steps", "hold_open", "resume", "interrupt", "loud"]
            values = [None, True, -1, 0, 2**62, "", "ok", 3, {}, [1]]
            options = {draw.choice(names): draw.choice(values) for _ in range(draw.randrange(1, 4))}
            return msgspec.json.encode(options) if draw.random() < 0.8 else draw.randbytes(20)
        odd: dict[str, list[Any]] = {
            "key": [draw.randrange(1, 5), 0, "", "x" * 300, 2**64],
            "start": [True, False],
            "end": [True],
            "unit": [-1, 0, 1, 7, 2**62],
            "text": [draw.randbytes(9), b"a" * 5000, b"\xed\xa0\xbd"],
        }
        return draw.choice(odd[field])


def run(engines: Path, messages: int, seed: int) -> dict[str, dict[str, int]]:
    """Three quarters of the messages at the stage's door, the rest at that of the loop. Raises Shared."""
    beside = Beside(engines)
    try:
        stage, duplex = StageDoor(beside, seed), DuplexDoor(beside, seed + 1)
        stage.run(messages * 3 // 4)
        for session in list(beside.runtime.stage._heard):  # also such whose name was damaged, and fits the schema
            beside.runtime.stage.submit(CloseJob(session, 2**62)).result(ANSWER_SECONDS)
        duplex.run(messages // 4)
        end = time.monotonic() + ANSWER_SECONDS
        while beside.runtime.blocks.used or beside.runtime.duplex.status()["freeing"]:
            if time.monotonic() > end:
                raise Shared(f"{beside.runtime.blocks.used} pages are still in use")
            time.sleep(0.01)
        return {"stage": dict(stage.seen), "loop": dict(duplex.seen), "healthy": {"conversations": beside.heard}}
    finally:
        asyncio.set_event_loop(None)
        beside.runtime.close()
