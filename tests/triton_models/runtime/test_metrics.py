"""Counters, timings and observations: nothing is lost between the threads that note them and those that read them."""

from __future__ import annotations

import threading

import pytest

from triton_models.runtime.metrics import MAX_EVENTS, MAX_OBSERVATIONS, Metrics

pytestmark = pytest.mark.unit


def test_a_timing_is_the_sum_of_its_calls_and_observes_their_rows() -> None:
    metrics = Metrics()
    metrics.time("render", 2.0, 3)
    metrics.time("render", 4.0)
    metrics.count("render.crashed")
    assert metrics.snapshot() == {
        "render.crashed": 1,
        "render.calls": 2,
        "render.rows": 4,
        "render.total_ms": 6.0,
        "render.max_ms": 4.0,
    }
    assert metrics.take() == {"render.batch": [3, 1]}
    assert metrics.take() == {}
    assert metrics.snapshot()["render.calls"] == 2, "figures stay, observations are handed out once"


def test_events_do_not_pile_up_without_a_reader() -> None:
    metrics = Metrics()
    for value in range(3 * MAX_OBSERVATIONS):
        metrics.count("a")
        metrics.time("b", 1.0)
        metrics.observe("c", value)
        assert max(map(len, (metrics._counted, metrics._timed, metrics._observed))) < MAX_EVENTS
    assert metrics.snapshot()["a"] == metrics.snapshot()["b.calls"] == 3 * MAX_OBSERVATIONS
    assert metrics.take()["c"] == list(range(2 * MAX_OBSERVATIONS, 3 * MAX_OBSERVATIONS))


def test_threads_lose_and_double_nothing() -> None:
    metrics, seen = Metrics(), []

    def note(first: int) -> None:
        for value in range(first, first + 900):
            metrics.count("a")
            metrics.observe("c", value)

    threads = [threading.Thread(target=note, args=(900 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        seen += metrics.take().get("c", [])
    seen += metrics.take().get("c", [])
    assert sorted(seen) == list(range(3600))
    assert metrics.snapshot()["a"] == 3600
