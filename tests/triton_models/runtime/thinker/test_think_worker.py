"""The thinker's thread: who shares a call, who waits for whom, and openings in small steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from workers import WAIT, Bench, Gate

from triton_models.runtime.messages import CloseJob, OpenJob, SessionError, ThinkJob, ThinkResult
from triton_models.runtime.thinker.worker import ThinkerWorker
from triton_models.runtime.worker import Worker

pytestmark = pytest.mark.unit


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


def test_openings_leave_half_of_the_time_to_those_who_talk(
    bench: Bench, started: Callable[[Worker], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[float] = []
    step = bench.thinker.open_stepwise

    def slow(job: OpenJob) -> Any:
        for _ in step(job):
            yield
            begun.append(time.monotonic())
            time.sleep(0.02)

    monkeypatch.setattr(bench.thinker, "open_stepwise", slow)
    worker = started(ThinkerWorker(bench.thinker))
    worker.submit(OpenJob("alone", 1, "red green blue " * 50)).result(WAIT)
    alone, begun[:] = begun[-1] - begun[0], []
    worker.submit(OpenJob("behind", 1, "red green blue " * 50)).result(WAIT)
    gaps = [b - a for a, b in pairwise(begun)]
    assert min(gaps) >= 0.04, f"as long a rest as a chunk took; alone: {alone}"


def test_an_opening_that_fails_says_so(bench: Bench, started: Callable[[Worker], Any]) -> None:
    worker = started(ThinkerWorker(bench.thinker))
    with pytest.raises(SessionError, match="INVALID_ARGUMENT: retention"):
        worker.submit(OpenJob("a", 1, retention="some")).result(WAIT)
    worker.submit(OpenJob("a", 1)).result(WAIT)
    with pytest.raises(SessionError, match="ALREADY_EXISTS"):
        worker.submit(OpenJob("a", 2)).result(WAIT)


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


def test_an_opening_that_crashes_later_says_so_too(
    bench: Bench, started: Callable[[Worker], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(job: OpenJob) -> Any:
        yield  # the first two chunks go with the round in which it came
        yield
        raise RuntimeError("no picture")

    monkeypatch.setattr(bench.thinker, "open_stepwise", crash)
    worker = started(ThinkerWorker(bench.thinker))
    with pytest.raises(SessionError, match="INTERNAL: the thinker failed: no picture"):
        worker.submit(OpenJob("a", 1)).result(WAIT)
    assert worker.alive


def test_an_idle_thinker_checks_its_pages(
    bench: Bench, started: Callable[[Worker], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triton_models.runtime.worker.IDLE_SECONDS", 0.01)
    checked = threading.Event()
    monkeypatch.setattr(bench.thinker, "check_integrity", checked.set)
    started(ThinkerWorker(bench.thinker))
    assert checked.wait(WAIT)
