"""Counters, timings and observations: nothing is lost between the threads that note them and those that read them."""

from __future__ import annotations

import threading

import pytest

from triton_models.runtime.metrics import MAX_OBSERVATIONS, Metrics

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


def test_without_a_reader_the_oldest_observations_fall_out() -> None:
    metrics = Metrics()
    for value in range(3 * MAX_OBSERVATIONS):
        metrics.observe("c", value)
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
