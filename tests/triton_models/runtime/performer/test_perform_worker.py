"""The performer's thread: what a step finished is rendered, and jobs may come ahead of their hand-over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from workers import WAIT, Bench, Gate, at_rest, perform_job, performer_of, performing

from triton_models.runtime.messages import CloseJob, HandOver, HistoryView, PerformJob, PerformResult, SessionError
from triton_models.runtime.performer.renderer import Renderer
from triton_models.runtime.performer.worker import PerformerWorker
from triton_models.runtime.worker import Worker

pytestmark = pytest.mark.unit


def test_what_one_step_finished_is_rendered_in_one_call(bench: Bench, started: Callable[[Worker], Any]) -> None:
    worker = performing(bench)
    futures = [worker.submit(perform_job(name)) for name in "abc"]
    started(worker)
    for future in futures:
        assert isinstance(future.result(WAIT), PerformResult)
    assert bench.fake("render").batches == [3]


def test_a_render_that_fails_fails_its_unit_alone(bench: Bench, started: Callable[[Worker], Any]) -> None:
    def spoil(_: object, outputs: dict[str, np.ndarray]) -> None:
        outputs["pcm"][0] = np.nan

    bench.fake("render").spoil = spoil
    worker = performing(bench)
    futures = [worker.submit(perform_job(name)) for name in "ab"]
    started(worker)
    outcomes = [future.exception(WAIT) for future in futures]
    assert sum(isinstance(outcome, SessionError) for outcome in outcomes) == 1
    assert outcomes.count(None) == 1


def test_a_crashed_performer_turn_fails_every_solve_under_way(
    bench: Bench, started: Callable[[Worker], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    performer = performer_of(bench)
    worker = PerformerWorker(performer, Renderer(bench.engines))
    futures = [worker.submit(perform_job(name)) for name in "ab"]
    with monkeypatch.context() as patch:
        patch.setattr(performer, "tick", lambda: 1 // 0)
        started(worker)
        for future in futures:
            with pytest.raises(SessionError, match="INTERNAL: the performer failed"):
                future.result(WAIT)
    assert isinstance(worker.submit(perform_job("a")).result(WAIT), PerformResult)


def test_a_closed_session_leaves_the_performer(bench: Bench, started: Callable[[Worker], Any]) -> None:
    gate = Gate(bench.fake("perform"))
    worker = started(performing(bench))
    solving = worker.submit(perform_job("a", steps=16))
    assert gate.entered.wait(WAIT)
    close = worker.submit(CloseJob("a", 1))
    gate.open()
    assert close.result(WAIT) is None
    with pytest.raises(SessionError, match="ABORTED: session 'a' was closed"):
        solving.result(WAIT)


def ahead(session: str, unit: int = 0) -> PerformJob:
    return replace(perform_job(session, unit), seed=0, history=None)


def over(session: str, unit: int = 0) -> HandOver:
    job = perform_job(session, unit)
    assert job.history is not None
    return HandOver(session, 1, unit, job.seed, job.origin, job.history, time.monotonic_ns())


@pytest.mark.parametrize("handed_first", [True, False])
def test_a_job_ahead_of_its_hand_over_gives_the_same_unit(
    bench: Bench, started: Callable[[Worker], Any], handed_first: bool
) -> None:
    worker = started(performing(bench))
    expected = worker.submit(perform_job("a")).result(WAIT)
    if handed_first:
        worker.hand_over(over("b"))
        at_rest(worker)
        future = worker.submit(ahead("b"))
    else:
        future = worker.submit(ahead("b"))
        at_rest(worker)
        assert not future.done()
        worker.hand_over(over("b"))
    result = future.result(WAIT)
    np.testing.assert_array_equal(result.z_video, expected.z_video)
    assert 0 <= result.ms["queue"] < 1000 * WAIT


def test_who_hands_over_runs_the_steps_where_nobody_else_is(bench: Bench, started: Callable[[Worker], Any]) -> None:
    worker = started(performing(bench))
    worker.submit(perform_job("a")).result(WAIT)
    at_rest(worker)
    threads: list[str] = []
    waiting = worker.submit(ahead("a", 1))
    waiting.add_done_callback(lambda future: threads.append(threading.current_thread().name))
    while not worker._ahead:
        time.sleep(0.001)
    at_rest(worker)
    worker.hand_over(over("a", 1))
    assert isinstance(waiting.result(0), PerformResult)
    assert threads == [threading.current_thread().name]


def test_a_close_fails_the_job_that_waits_and_refuses_what_it_overtook(
    bench: Bench, started: Callable[[Worker], Any]
) -> None:
    worker = started(performing(bench))
    waiting = worker.submit(ahead("a"))
    worker.submit(CloseJob("a", 1)).result(WAIT)
    for future in (waiting, worker.submit(ahead("a", 1)), worker.submit(perform_job("a", 2))):
        with pytest.raises(SessionError, match="ABORTED: session 'a' was closed"):
            future.result(WAIT)
    worker.hand_over(over("a"))
    at_rest(worker)
    assert not worker._ahead
    assert not worker._performer.pending
    again = replace(ahead("a"), epoch=2)
    future = worker.submit(again)
    worker.hand_over(replace(over("a"), epoch=2))
    assert isinstance(future.result(WAIT), PerformResult), "a later epoch is another session"


def test_a_bad_hand_over_is_the_error_of_its_job(bench: Bench, started: Callable[[Worker], Any]) -> None:
    worker = started(performing(bench))
    future = worker.submit(ahead("a"))
    bad = HistoryView(np.array([10**6], np.int64), np.zeros((1, 2), np.int64))
    worker.hand_over(replace(over("a"), history=bad))
    with pytest.raises(SessionError, match="INVALID_ARGUMENT: history"):
        future.result(WAIT)


def test_one_unit_has_one_job(bench: Bench, started: Callable[[Worker], Any]) -> None:
    worker = started(performing(bench))
    first, second = worker.submit(ahead("a")), worker.submit(ahead("a"))
    with pytest.raises(SessionError, match="ALREADY_EXISTS"):
        second.result(WAIT)
    worker.hand_over(over("a"))
    assert isinstance(first.result(WAIT), PerformResult)


def test_stop_fails_jobs_that_wait_for_their_hand_over(bench: Bench) -> None:
    worker = performing(bench)
    worker.start()
    future = worker.submit(ahead("a"))
    while not worker._ahead:
        time.sleep(0.001)
    worker.stop()
    with pytest.raises(SessionError, match="UNAVAILABLE"):
        future.result(WAIT)
    worker.hand_over(over("a"))  # refused, and nobody is hurt
