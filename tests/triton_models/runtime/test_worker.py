"""The two worker threads: order, bounds, gathering, and failures that leave the thread alive."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from triton_models.runtime.costs import CostTable
from triton_models.runtime.messages import (
    CloseJob,
    HistoryView,
    OpenJob,
    PerformJob,
    PerformResult,
    SessionError,
    ThinkJob,
    ThinkResult,
)
from triton_models.runtime.performer import Performer
from triton_models.runtime.renderer import Renderer
from triton_models.runtime.scheduler import StepScheduler
from triton_models.runtime.worker import PerformerWorker, ThinkerWorker, Worker

pytestmark = pytest.mark.unit

Bench = Any  # the class of conftest.py
WAIT = 20  # seconds until a hung test gives up


@pytest.fixture
def started() -> Iterator[Callable[[Worker], Any]]:
    workers: list[Worker] = []

    def start(worker: Worker) -> Worker:
        worker.start()
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        worker.stop()
        assert not worker.alive


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


def at_rest(*workers: Worker) -> None:
    """Until no thread takes a turn: a result comes before the end of its turn."""
    for worker in workers:
        with worker._turning:
            pass


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


def test_jobs_of_a_session_keep_their_order_in_one_turn(bench: Bench, started: Callable[[Worker], Any]) -> None:
    bench.open("a", "b")
    worker = ThinkerWorker(bench.thinker)
    futures = [worker.submit(bench.hear("a", 0)), worker.submit(bench.hear("b", 0))]
    futures += [worker.submit(ThinkJob(name, 1, 0)) for name in "ab"]
    futures += [worker.submit(bench.asks("b", 1))]
    futures += [worker.submit(CloseJob("a", 1)), worker.submit(bench.hear("a", 1))]
    started(worker)
    for future in futures[:-1]:
        future.result(WAIT)
    with pytest.raises(SessionError, match="NOT_FOUND"):
        futures[-1].result(WAIT)
    assert bench.fake("perceive").batches == [2, 1]


def test_sessions_that_are_ready_together_share_a_call(bench: Bench, started: Callable[[Worker], Any]) -> None:
    worker = started(ThinkerWorker(bench.thinker, gather_ns=WAIT * 10**9))  # all three are here long before
    for name in "abc":
        worker.submit(OpenJob(name, 1)).result(WAIT)
    futures = [worker.submit(ThinkJob(name, 1, 0, "", bench.hear(name, 0))) for name in "abc"]
    for future in futures:
        assert isinstance(future.result(WAIT), ThinkResult)
    assert bench.fake("perceive").batches == [3]


def test_a_job_that_is_alone_needs_no_other_thread(bench: Bench, started: Callable[[Worker], Any]) -> None:
    thinker, performer = started(ThinkerWorker(bench.thinker)), started(performing(bench))
    done: list[tuple[str, Any]] = []

    def here(future: Any) -> None:
        done.append((threading.current_thread().name, future.result()))

    thinker.submit(OpenJob("a", 1)).result(WAIT)
    performer.submit(perform_job("a")).result(WAIT)  # the performer knows a session from its first unit on
    at_rest(thinker, performer)
    thinker.serve(bench.asks("a", 0), here)
    performer.serve(perform_job("a", 1), here)
    me = threading.current_thread().name
    assert [(name, type(result)) for name, result in done] == [(me, ThinkResult), (me, PerformResult)]
    thinker.submit(OpenJob("b", 1)).result(WAIT)
    performer.submit(perform_job("b")).result(WAIT)
    both = threading.Barrier(3)
    thinker.serve(bench.asks("b", 0), lambda future: (here(future), both.wait(WAIT)))
    performer.serve(perform_job("b", 1), lambda future: (here(future), both.wait(WAIT)))
    both.wait(WAIT)
    assert {name for name, _ in done[2:]} == {"thinker", "performer"}


def test_the_thread_takes_over_when_company_comes(bench: Bench, started: Callable[[Worker], Any]) -> None:
    worker = started(performing(bench))
    worker.submit(perform_job("a")).result(WAIT)
    at_rest(worker)
    gate = Gate(bench.fake("perform"))
    done: list[str] = []
    serving = threading.Thread(
        target=worker.serve,
        args=(perform_job("a", 1, steps=8), lambda future: done.append(threading.current_thread().name)),
    )
    serving.start()
    assert gate.entered.wait(WAIT)  # inside the first step
    other = worker.submit(perform_job("b", steps=1))
    gate.open()
    assert isinstance(other.result(WAIT), PerformResult)
    serving.join(WAIT)
    end = time.monotonic() + WAIT
    while not done:
        assert time.monotonic() < end
        time.sleep(0.001)
    assert done == ["performer"]
    assert 2 in bench.fake("perform").batches, "they shared a step"


def test_a_crash_of_a_job_that_is_alone_is_its_error(
    bench: Bench, started: Callable[[Worker], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = started(ThinkerWorker(bench.thinker))
    worker.submit(OpenJob("a", 1)).result(WAIT)
    at_rest(worker)
    failed: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(bench.thinker, "think", lambda jobs: 1 // 0)
        worker.serve(bench.asks("a", 0), failed.append)
    with pytest.raises(SessionError, match="INTERNAL: the thinker failed"):
        failed[0].result(0)
    worker.serve(bench.hear("a", 0), failed.append)
    assert isinstance(failed[1].result(0), float)


def test_a_single_session_waits_for_nobody(bench: Bench, started: Callable[[Worker], Any]) -> None:
    worker = started(ThinkerWorker(bench.thinker, gather_ns=10 * WAIT * 10**9))
    worker.submit(OpenJob("a", 1)).result(WAIT)
    for unit in range(3):
        assert isinstance(worker.submit(bench.asks("a", unit)).result(WAIT), ThinkResult)


def test_a_think_job_that_waits_for_company_goes_with_its_session(
    bench: Bench, started: Callable[[Worker], Any]
) -> None:
    worker = started(ThinkerWorker(bench.thinker, gather_ns=10 * WAIT * 10**9))
    for name in "ab":
        worker.submit(OpenJob(name, 1)).result(WAIT)
    waiting = worker.submit(ThinkJob("a", 1, 0, "", bench.hear("a", 0)))
    worker.submit(bench.hear("b", 0)).result(WAIT)  # one more turn, and b has still not asked to think
    assert not waiting.done()
    with pytest.raises(SessionError, match="expected 1, the next one to perceive, got 0"):
        worker.submit(bench.hear("a", 0)).result(WAIT)  # a second job of the session ends the wait
    assert isinstance(waiting.result(WAIT), ThinkResult)
    waiting = worker.submit(bench.asks("a", 1))
    worker.submit(CloseJob("a", 0)).result(WAIT)  # of an older epoch
    worker.submit(CloseJob("a", 1)).result(WAIT)
    with pytest.raises(SessionError, match="ABORTED: session 'a' was closed"):
        waiting.result(WAIT)
    assert isinstance(worker.submit(ThinkJob("b", 1, 0)).result(WAIT), ThinkResult), "nobody else is left to wait for"


def test_nobody_waits_where_company_saves_nothing(bench: Bench, started: Callable[[Worker], Any]) -> None:
    costs = [0.0, 5.0, 10.0, 15.0]
    worker = started(ThinkerWorker(bench.thinker, gather_ns=10 * WAIT * 10**9, costs=costs))
    for name in "ab":
        worker.submit(OpenJob(name, 1)).result(WAIT)
    assert isinstance(worker.submit(bench.asks("a", 0)).result(WAIT), ThinkResult)


def test_a_deadline_ends_the_wait_for_company(bench: Bench, started: Callable[[Worker], Any]) -> None:
    worker = started(ThinkerWorker(bench.thinker, gather_ns=10 * WAIT * 10**9))
    for name in "ab":
        worker.submit(OpenJob(name, 1)).result(WAIT)
    job = ThinkJob("a", 1, 0, "", bench.hear("a", 0), latest_ns=time.monotonic_ns() + 10_000_000)
    assert isinstance(worker.submit(job).result(WAIT), ThinkResult)


def test_stop_fails_think_jobs_that_wait_for_company(bench: Bench, started: Callable[[Worker], Any]) -> None:
    worker = started(ThinkerWorker(bench.thinker, gather_ns=10 * WAIT * 10**9))
    for name in "ab":
        worker.submit(OpenJob(name, 1)).result(WAIT)
    waiting = worker.submit(ThinkJob("a", 1, 0, "", bench.hear("a", 0)))
    worker.submit(bench.hear("b", 0)).result(WAIT)
    worker.stop()
    with pytest.raises(SessionError, match="UNAVAILABLE"):
        waiting.result(0)


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


def test_a_long_prompt_does_not_hold_up_others(bench: Bench, started: Callable[[Worker], Any]) -> None:
    bench.open("a")
    order: list[str] = []
    worker = ThinkerWorker(bench.thinker)
    opening = worker.submit(OpenJob("b", 1, "red green blue " * 100))
    opening.add_done_callback(lambda _: order.append("opened"))
    gate = Gate(bench.fake("think"))
    started(worker)
    assert gate.entered.wait(WAIT)  # inside the first chunk
    heard = worker.submit(bench.hear("a", 0))
    heard.add_done_callback(lambda _: order.append("heard"))
    gate.open()
    opening.result(WAIT)
    assert order == ["heard", "opened"]


def test_an_opening_that_fails_says_so(bench: Bench, started: Callable[[Worker], Any]) -> None:
    worker = started(ThinkerWorker(bench.thinker))
    with pytest.raises(SessionError, match="INVALID_ARGUMENT: retention"):
        worker.submit(OpenJob("a", 1, retention="some")).result(WAIT)
    worker.submit(OpenJob("a", 1)).result(WAIT)
    with pytest.raises(SessionError, match="ALREADY_EXISTS"):
        worker.submit(OpenJob("a", 2)).result(WAIT)


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


def test_a_crash_fails_think_jobs_of_earlier_turns_too(
    bench: Bench, started: Callable[[Worker], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = started(ThinkerWorker(bench.thinker, gather_ns=10 * WAIT * 10**9))
    for name in "ab":
        worker.submit(OpenJob(name, 1)).result(WAIT)
    waiting = worker.submit(ThinkJob("a", 1, 0, "", bench.hear("a", 0)))
    worker.submit(bench.hear("b", 0)).result(WAIT)
    monkeypatch.setattr(bench.thinker, "think", lambda jobs: 1 // 0)
    second = worker.submit(ThinkJob("b", 1, 0))
    for future in (waiting, second):
        with pytest.raises(SessionError, match="INTERNAL: the thinker failed"):
            future.result(WAIT)
    assert worker.alive


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


def test_an_idle_thinker_checks_its_pages(
    bench: Bench, started: Callable[[Worker], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triton_models.runtime.worker.IDLE_SECONDS", 0.01)
    checked = threading.Event()
    monkeypatch.setattr(bench.thinker, "check_integrity", checked.set)
    started(ThinkerWorker(bench.thinker))
    assert checked.wait(WAIT)
