"""A `Duplex` over models that are not there: stages can be held back or fail, and a test waits until nothing moves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine_builder.config import ModelConfig
from triton_models.runtime.budget.admission import Admission, Budget
from triton_models.runtime.budget.costs import CostTable
from triton_models.runtime.duplex.contract import UnitRequest, UnitResponse
from triton_models.runtime.duplex.duplex import Duplex
from triton_models.runtime.messages import (
    CloseJob,
    HistoryView,
    OpenJob,
    PerceiveJob,
    PerformJob,
    PerformResult,
    SessionError,
    ThinkJob,
    ThinkResult,
)

CONFIG = ModelConfig()
WAIT = 20.0  # seconds until a hung test gives up


def books(sessions: float = 2.0, pages: int = 400, **budget: Any) -> Admission:
    costs = CostTable.linear({"perceive": (0, 1), "think": (0, 1), "slot": (0, 1), "perform": (0, 2), "render": (0, 1)})
    given = Budget(sessions=sessions, solver_steps=4, pages=pages, page_tokens=16, utilisation=1.0, **budget)
    return Admission(CONFIG, costs, given)


def within(event: threading.Event) -> None:
    assert event.wait(WAIT)


@dataclass
class Recorder:
    """A `Reply` that remembers what was said, and complains about anything after the end."""

    said: list[UnitResponse | SessionError] = field(default_factory=list)
    finished: threading.Event = field(default_factory=threading.Event)
    spoke: threading.Event = field(default_factory=threading.Event)
    gone: bool = False
    hold: Gate | None = None  # before everything that is said

    def _wait(self) -> None:
        if self.hold is not None:
            self.hold.wait()

    def _say(self, what: UnitResponse | SessionError) -> None:
        self._wait()
        assert not self.finished.is_set(), f"{what} after the end"
        self.said.append(what)
        self.spoke.set()

    def send(self, response: UnitResponse) -> None:
        self._say(response)

    def fail(self, error: SessionError) -> None:
        self._say(error)

    def finish(self) -> None:
        self._wait()
        assert not self.finished.is_set(), "finished twice"
        self.finished.set()

    def cancelled(self) -> bool:
        return self.gone

    @property
    def errors(self) -> list[str]:
        return [str(item) for item in self.said if isinstance(item, SessionError)]

    @property
    def units(self) -> list[int]:
        return [item.unit for item in self.said if isinstance(item, UnitResponse)]


class Gate:
    """Holds calls back while it is shut; knows how many stand before it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open = False
        self.waiting = 0

    def wait(self) -> None:
        with self._changed:
            if self._open:
                return
            self.waiting += 1
            assert self._changed.wait_for(lambda: self._open, WAIT)

    def set(self) -> None:
        with self._changed:
            self._open, self.waiting = True, 0  # they move from this moment on, whenever they wake up
            self._changed.notify_all()

    def clear(self) -> None:
        self._open = False


@dataclass
class Models:
    """Both models. `log` has every job in the order of its start; `gates` hold a stage back; `errors` are raised;
    `sound` is what they say, by unit, where it matters."""

    clock: Callable[[], int]
    log: list[tuple[str, Any]] = field(default_factory=list)
    gates: dict[tuple[str, int], Gate] = field(default_factory=dict)
    errors: dict[tuple[str, int], Exception] = field(default_factory=dict)
    steps: int = 4
    sound: np.ndarray | None = None

    def call(self, job: Any) -> Any:
        what = type(job).__name__.removesuffix("Job").lower()
        unit = getattr(job, "unit", 0)
        self.log.append((what, job))
        if gate := self.gates.get((what, unit)):
            gate.wait()
        if (what, unit) in self.errors:
            raise self.errors[what, unit]  # a name for it here would hold the frames that it goes through
        match job:
            case ThinkJob():
                history = HistoryView(np.array([1 + unit], np.int64), np.array([[0, 1]], np.int64))
                ms = {"perceive": 1.0, "think": 2.0}
                said, heard = f"t{unit}", f" h{unit}"
                return ThinkResult(
                    job.session, job.epoch, unit, "listen", said, history, 3, 7, (3,), ms, b"seal", heard
                )
            case PerformJob():
                z = np.full((2, 2), unit, np.float32)
                pcm = np.full(CONFIG.audio.unit_samples, unit, np.float32) if self.sound is None else self.sound[unit]
                frames = np.zeros((1, 1, 1, 3), np.uint8)
                ms = {"queue": 0.5, "perform": 4.0, "render": 1.0}
                return PerformResult(job.session, job.epoch, unit, z, z, self.steps, self.clock(), pcm, frames, ms)
            case PerceiveJob():
                return 1.0
            case CloseJob() | OpenJob():
                return None

    def jobs(self, what: str) -> list[Any]:
        return [job for kind, job in list(self.log) if kind == what]

    @property
    def order(self) -> list[tuple[str, int]]:
        return [(what, getattr(job, "unit", 0)) for what, job in list(self.log)]

    def hold(self, what: str, unit: int) -> Gate:
        return self.gates.setdefault((what, unit), Gate())


@dataclass
class Clock:
    now: int = 10**12

    def __call__(self) -> int:
        self.now += 1_000_000  # a millisecond passes between two looks
        return self.now


class CountingThreads(ThreadPoolExecutor):
    """Knows how much of what was submitted is not done."""

    def __init__(self) -> None:
        super().__init__(256, "test")
        self._counting = threading.Lock()
        self.under_way = 0

    def submit(self, work: Callable[..., Any], /, *args: Any) -> Future[Any]:  # pyright: ignore
        with self._counting:
            self.under_way += 1
        return super().submit(self._counted, work, args)

    def _counted(self, work: Callable[..., None], args: tuple[Any, ...]) -> None:
        try:
            work(*args)
        finally:
            with self._counting:
                self.under_way -= 1


class DuplexBench:
    """`options` as for `Duplex`."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.models = Models(self.clock)
        options = {"ahead_units": None, **options}  # units come as quickly as tests go, unless it is about that
        self.duplex = Duplex(CONFIG, self.models.call, self.models.call, len, clock=self.clock, **options)
        self.threads = CountingThreads()
        self.duplex._loop._threads = self.threads

    def unit(
        self,
        key: int | str,
        unit: int,
        *,
        start: bool | None = None,
        end: bool = False,
        options: str = "",
        reply: Recorder | None = None,
        **changes: Any,
    ) -> Recorder:
        pcm, frames = np.zeros(2560, np.float32), np.zeros((4, 64, 64, 3), np.uint8)
        request = UnitRequest(
            key,
            unit == 0 if start is None else start,
            end,
            unit,
            changes.get("pcm", pcm),
            changes.get("frames", frames),
            changes.get("text", b""),
            options.encode(),
        )
        reply = reply or Recorder()
        self.duplex.serve(request, reply)
        return reply

    def settled(self) -> None:
        """Until every thread is done, or waits for a gate or for another unit."""
        end = time.monotonic() + WAIT
        while self._moving():
            assert time.monotonic() < end, "it does not come to rest"
            time.sleep(0.001)

    def _moving(self) -> bool:
        with self.duplex._lock:
            # A thread that was notified is no waiter any more, even before it wakes up.
            talks = [*self.duplex._conversations.values(), *self.duplex._freeing]
            waiting = sum(len(talk.changed._waiters) for talk in talks)  # pyright: ignore
            held = sum(gate.waiting for gate in list(self.models.gates.values()))
            return self.threads.under_way != waiting + held

    def close(self) -> None:
        for gate in list(self.models.gates.values()):
            gate.set()
        self.duplex.abandon("the test is over")
        self.settled()
        self.threads.shutdown()
