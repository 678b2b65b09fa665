"""The baseline does what Triton's dynamic batcher does."""

from collections.abc import Hashable

import pytest

from triton_models.planner.policies import RequestBatching

pytestmark = pytest.mark.unit


def run_batch(batching: RequestBatching, now: int) -> tuple[list[Hashable], int]:
    """Runs evaluations until a batch is done; returns its jobs and the number of evaluations."""
    for count in range(1, 100):
        rows = batching.next_tick(now)
        assert rows
        if done := batching.completed(rows, now):
            return done, count
    raise RuntimeError("a batch never ended")


def test_a_batch_runs_all_its_steps_before_the_next_one_forms() -> None:
    batching = RequestBatching(2)
    batching.join("a", 0, 4, 0)
    rows = batching.next_tick(0)
    batching.join("b", 0, 4, 1)
    batching.join("c", 0, 2, 1)
    assert [row.job for row in batching.next_tick(1)] == ["a"]
    batching.completed(rows, 1)
    assert run_batch(batching, 2) == (["a"], 3)
    assert run_batch(batching, 3) == (["b", "c"], 4)  # the short one waits for the long one: one execution
    assert len(batching) == 0


def test_waits_for_company_no_longer_than_the_queue_delay() -> None:
    batching = RequestBatching(2, delay_ns=10)
    batching.join("a", 0, 1, 5)
    assert batching.next_tick(14) == []
    assert [row.job for row in batching.next_tick(15)] == ["a"]
    run_batch(batching, 16)
    batching.join("b", 0, 1, 20)
    batching.join("c", 0, 1, 21)
    assert [row.job for row in batching.next_tick(21)] == ["b", "c"]  # full


def test_only_a_queued_request_can_leave() -> None:
    batching = RequestBatching(1)
    batching.join("a", 0, 1, 0)
    batching.join("b", 0, 1, 0)
    batching.next_tick(0)
    assert batching.leave("b")
    assert not batching.leave("a")
    assert run_batch(batching, 0) == (["a"], 1)


def test_bad_size_is_named() -> None:
    with pytest.raises(ValueError, match="max_batch: expected >= 1 row, got 0"):
        RequestBatching(0)
