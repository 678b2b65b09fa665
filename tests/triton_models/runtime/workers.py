"""What the tests of the two workers share: jobs, a performer over the fake engines, and ways to wait."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np

from triton_models.runtime.budget.costs import CostTable
from triton_models.runtime.messages import HistoryView, PerformJob
from triton_models.runtime.performer.performer import Performer
from triton_models.runtime.performer.renderer import Renderer
from triton_models.runtime.performer.scheduler import StepScheduler
from triton_models.runtime.performer.worker import PerformerWorker
from triton_models.runtime.worker import Worker

Bench = Any  # the class of conftest.py
WAIT = 20  # seconds until a hung test gives up


def perform_job(session: str, unit: int = 0, steps: int = 2) -> PerformJob:
    view = HistoryView(np.zeros(1, np.int64), np.zeros((1, 2), np.int64))
    return PerformJob(session, 1, unit, seed=1, steps=steps, deadline_ns=2**62, origin=0, history=view)


def performer_of(bench: Bench) -> Performer:
    costs = CostTable.linear({"perform": (1.0, 0.0)})
    return Performer(bench.engines, bench.pool, StepScheduler(costs, bench.engines.max_batch))


def performing(bench: Bench) -> PerformerWorker:
    return PerformerWorker(performer_of(bench), Renderer(bench.engines))


def until_stopping(worker: Worker) -> None:
    end = time.monotonic() + WAIT
    while not worker._stopping:
        assert time.monotonic() < end
        time.sleep(0.001)


class Gate:
    """Holds an engine inside a call until it is opened, so that jobs pile up behind it."""

    def __init__(self, engine: Any) -> None:
        self.entered = threading.Event()
        self._open = threading.Event()
        engine.spoil = self._hold

    def _hold(self, *_: object) -> None:
        self.entered.set()
        assert self._open.wait(WAIT)

    def open(self) -> None:
        self._open.set()
