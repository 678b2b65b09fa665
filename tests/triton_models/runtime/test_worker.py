"""The two worker threads: order, bounds, gathering, and failures that leave the thread alive."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from workers import WAIT, Bench, Gate, perform_job, performing, until_stopping

from triton_models.runtime.messages import (
    CloseJob,
    OpenJob,
    PerformJob,
    PerformResult,
    SessionError,
    ThinkJob,
    ThinkResult,
)
from triton_models.runtime.thinker.worker import ThinkerWorker
from triton_models.runtime.worker import Worker

pytestmark = pytest.mark.unit


def test_a_unit_goes_through_both_workers(bench: Bench, started: Callable[[Worker], Any]) -> None:
    thinker, performer = started(ThinkerWorker(bench.thinker)), started(performing(bench))
    thinker.submit(OpenJob("a", 1, "red green")).result(WAIT)
    z: tuple[np.ndarray, ...] = ()
    for unit in range(3):
        thought = thinker.submit(ThinkJob("a", 1, unit, "", bench.hear("a", unit), *z)).result(WAIT)
        assert isinstance(thought, ThinkResult)
        job = PerformJob("a", 1, unit, thought.seed, 2, 2**62, thought.origin, thought.history)
        performed = performer.submit(job).result(WAIT)
        assert isinstance(performed, PerformResult)
        assert performed.pcm is not None
        assert performed.frames is not None
        assert set(performed.ms) == {"queue", "perform", "render"}
        z = performed.z_video, performed.z_audio
    for worker in (performer, thinker):
        worker.submit(CloseJob("a", 1)).result(WAIT)
    assert bench.blocks.used == 0
    assert len(performer._renderer) == 0


def test_a_full_queue_refuses_jobs_and_takes_closes(bench: Bench, started: Callable[[Worker], Any]) -> None:
    bench.open("a", "b")
    worker = ThinkerWorker(bench.thinker, capacity=1)
    first = worker.submit(bench.hear("a", 0))
    with pytest.raises(SessionError, match="RESOURCE_EXHAUSTED: the thinker has 1 jobs queued already"):
        worker.submit(bench.hear("b", 0)).result(0)
    close = worker.submit(CloseJob("b", 1))
    started(worker)
    assert close.result(WAIT) is None
    assert isinstance(first.result(WAIT), float)
    assert bench.thinker.open_sessions == 1


def test_stop_fails_what_is_pending_and_what_comes_later(bench: Bench) -> None:
    bench.open("a")
    worker = ThinkerWorker(bench.thinker)
    gate = Gate(bench.fake("perceive"))
    worker.start()
    running = worker.submit(bench.hear("a", 0))
    assert gate.entered.wait(WAIT)
    queued = worker.submit(ThinkJob("a", 1, 0))
    stopper = threading.Thread(target=worker.stop)
    stopper.start()
    until_stopping(worker)
    with pytest.raises(SessionError, match="UNAVAILABLE: the thinker is shutting down"):
        worker.submit(bench.hear("a", 1)).result(0)
    gate.open()
    stopper.join(WAIT)
    assert isinstance(running.result(0), float), "the turn at hand is finished"
    with pytest.raises(SessionError, match="UNAVAILABLE"):
        queued.result(0)
    worker.stop()


def test_stop_before_start_fails_the_queue_of_nobody(bench: Bench) -> None:
    worker = ThinkerWorker(bench.thinker)
    worker.stop()
    with pytest.raises(SessionError, match="UNAVAILABLE"):
        worker.submit(bench.hear("a", 0)).result(0)


def test_stop_fails_openings_and_solves_under_way(bench: Bench, started: Callable[[Worker], Any]) -> None:
    gates = [Gate(bench.fake("think")), Gate(bench.fake("perform"))]
    thinker, performer = started(ThinkerWorker(bench.thinker)), started(performing(bench))
    opening = thinker.submit(OpenJob("a", 1, "red green blue " * 100))
    solving = performer.submit(perform_job("b", steps=16))
    stoppers = [threading.Thread(target=worker.stop) for worker in (thinker, performer)]
    for gate, stopper in zip(gates, stoppers, strict=True):
        assert gate.entered.wait(WAIT)
        stopper.start()
    for worker in (thinker, performer):
        until_stopping(worker)
    for gate, stopper in zip(gates, stoppers, strict=True):
        gate.open()
        stopper.join(WAIT)
    for future in (opening, solving):
        with pytest.raises(SessionError, match="UNAVAILABLE"):
            future.result(0)
    assert (bench.thinker.open_sessions, bench.blocks.used) == (0, 0)


def test_a_crashed_turn_fails_its_jobs_and_the_thread_goes_on(
    bench: Bench, started: Callable[[Worker], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.open("a")
    worker = started(ThinkerWorker(bench.thinker))

    def broken(_: object) -> None:
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(bench.thinker, "perceive", broken)
        with pytest.raises(SessionError, match="INTERNAL: the thinker failed: a bug"):
            worker.submit(bench.hear("a", 0)).result(WAIT)
    assert worker.alive
    assert isinstance(worker.submit(bench.hear("a", 0)).result(WAIT), float)


def test_jobs_of_the_other_worker_and_bad_jobs_are_refused(bench: Bench, started: Callable[[Worker], Any]) -> None:
    thinker, performer = started(ThinkerWorker(bench.thinker)), started(performing(bench))
    with pytest.raises(SessionError, match="INTERNAL: the thinker takes no PerformJob"):
        thinker.submit(perform_job("a")).result(WAIT)
    with pytest.raises(SessionError, match="INTERNAL: the performer takes no OpenJob"):
        performer.submit(OpenJob("a", 1)).result(WAIT)
    with pytest.raises(SessionError, match="INVALID_ARGUMENT: solver steps"):
        performer.submit(perform_job("a", steps=99)).result(WAIT)


def test_a_cancelled_future_drops_its_job_but_not_a_close(bench: Bench, started: Callable[[Worker], Any]) -> None:
    bench.open("a")
    worker = ThinkerWorker(bench.thinker)
    heard, closed = worker.submit(bench.hear("a", 0)), worker.submit(CloseJob("a", 1))
    assert heard.cancel()
    assert closed.cancel()
    started(worker)
    with pytest.raises(SessionError, match="NOT_FOUND"):
        worker.submit(bench.hear("a", 0)).result(WAIT)
    assert bench.fake("perceive").batches == []
