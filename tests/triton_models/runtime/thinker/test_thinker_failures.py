"""The thinker over fake engines: batches, and failures that stay in their row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from outcomes import error_of

from triton_models.runtime.messages import PerceiveJob, SessionError, ThinkJob, ThinkResult

pytestmark = pytest.mark.unit

Bench = Any  # the class of conftest.py


def test_batched_equals_solo_bit_for_bit(make_bench: Callable[..., Bench]) -> None:
    together, alone = make_bench(max_batch=3), make_bench()
    names = [f"s{i}" for i in range(7)]  # more than two full batches
    for i, name in enumerate(names):
        together.open(name, prompt="red " * i)
        alone.open(name, prompt="red " * i)
    for unit in range(4):
        jobs = [together.asks(n, unit, "seven" if i % 2 else "", 0.01 * i, 0.02 * i) for i, n in enumerate(names)]
        batched = together.think(*jobs)
        for job, result in zip(jobs, batched, strict=True):
            solo = alone.think(job)[0]
            assert isinstance(result, ThinkResult)
            assert isinstance(solo, ThinkResult)
            assert result.slots == solo.slots
            np.testing.assert_array_equal(together.history(result), alone.history(solo))
    assert max(together.fake("think").batches) == 3


def test_bad_input_in_a_batch_is_refused_alone(bench: Bench) -> None:
    bench.open("a", "b", "c")
    silent = bench.hear("b", 0)
    bad = PerceiveJob("b", 1, 0, silent.pcm.astype(np.int16)[:2400], silent.frames)
    results = bench.thinker.perceive([bench.hear("a", 0), bad, bench.hear("c", 0)])
    assert "pcm: expected 2560 float32 samples for one 160 ms unit, got 2400 int16" in error_of(
        results[1], "INVALID_ARGUMENT"
    )
    assert isinstance(results[0], float)
    assert isinstance(results[2], float)
    assert isinstance(bench.thinker.perceive([bench.hear("b", 0)])[0], float), "the unit can be sent again"
    bench.think(*(ThinkJob(name, 1, 0) for name in "abc"))
    jobs = [bench.asks(name, 1) for name in "abc"]
    jobs[1] = ThinkJob("b", 1, 1, "", jobs[1].perceive, np.full((1, 2), np.nan, np.float32), jobs[1].z_audio)
    thought = bench.think(*jobs)
    assert "z_video: expected finite values" in error_of(thought[1], "INVALID_ARGUMENT")
    assert isinstance(thought[2], ThinkResult)
    assert isinstance(bench.think(bench.asks("b", 1, level=None))[0], ThinkResult), "the unit can be sent again"


@pytest.mark.parametrize(
    ("step", "output", "pass_number"),
    [
        ("perceive", "e_audio", 0),
        ("perceive", "state_out", 0),
        ("think", "logits", 0),
        ("think", "k_new", 0),
        ("think", "v_new", 1),
    ],
)
def test_nan_in_one_row_stays_in_that_row(
    make_bench: Callable[..., Bench], step: str, output: str, pass_number: int
) -> None:
    bench, healthy = make_bench(), make_bench()
    for b in (bench, healthy):
        b.open("a", "b", "c")
        for name in "abc":
            b.unit(name, 0)
    calls = 0

    def spoil(inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> None:
        nonlocal calls
        if calls == pass_number:
            row = (slice(None), 1) if output in ("k_new", "v_new") else 1
            outputs[output][row] = np.nan if calls else np.inf
        calls += 1

    bench.fake(step).spoil = spoil
    before = bench.blocks.owned("b")
    jobs = [bench.asks(name, 1) for name in "abc"]
    thought, expected = bench.think(*jobs), healthy.think(*jobs)
    assert thought[2].slots == expected[2].slots
    np.testing.assert_array_equal(bench.history(thought[2]), healthy.history(expected[2]))
    message = error_of(thought[1], "INTERNAL")
    assert "'b'" in message
    assert "NaN or Inf" in message
    if step == "think" and pass_number == 0:
        assert bench.blocks.owned("b") == before, "nothing of the row was committed"
    assert np.isfinite(bench.pool.k).all()
    assert np.isfinite(bench.pool.v).all()
    assert error_of(bench.think(bench.asks("b", 2))[0], "INTERNAL") == message, "it only closes now"
    bench.close("b")
    bench.open("b")
    bench.unit("b", 0)


def test_an_engine_that_crashes_fails_its_batch_only(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(max_batch=2)
    bench.open("a", "b", "c")
    bench.thinker.perceive([bench.hear(name, 0) for name in "abc"])

    def die_for_a(inputs: dict[str, np.ndarray], _: object) -> None:
        if len(inputs["ids"]) == 2:
            raise RuntimeError("out of memory")

    bench.fake("think").spoil = die_for_a
    results = bench.think(*(ThinkJob(name, 1, 0) for name in "abc"))
    for failed in results[:2]:
        assert "the engine call failed (out of memory)" in error_of(failed, "INTERNAL")
    assert isinstance(results[2], ThinkResult)
    assert bench.thinker.stats()["think.crashed"] == 1


def test_a_pool_that_is_used_up_ends_one_session_and_not_the_others(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(pages=14)
    bench.open("a", "b")
    refused = ""
    for unit in range(8):
        results = bench.think(*(bench.asks(name, unit) for name in "ab"))
        if isinstance(results[0], SessionError) or isinstance(results[1], SessionError):
            failed = next(i for i in (0, 1) if isinstance(results[i], SessionError))
            refused = error_of(results[failed], "RESOURCE_EXHAUSTED")
            break
    assert "kv pages: session" in refused
    other = "ab"[1 - failed]
    bench.close("ab"[failed])
    if isinstance(results[1 - failed], ThinkResult):
        bench.unit(other, unit + 1)


def test_a_prompt_larger_than_the_pool_is_refused_and_leaves_nothing(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(pages=8)
    with pytest.raises(SessionError, match="RESOURCE_EXHAUSTED: kv pages"):
        bench.open("a", prompt="red " * 60)
    assert (bench.blocks.used, bench.thinker.open_sessions) == (0, 0)


def test_a_prompt_that_breaks_the_engine_is_refused(bench: Bench) -> None:
    def spoil(inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> None:
        outputs["k_new"][:] = np.nan

    bench.fake("think").spoil = spoil
    with pytest.raises(SessionError, match="INTERNAL: prompt of session 'a'"):
        bench.open("a", prompt="red")
    assert bench.thinker.open_sessions == 0


def test_stats_count_sessions_pages_and_calls(bench: Bench) -> None:
    bench.open("a")
    bench.unit("a", 0)
    stats = bench.thinker.stats()
    assert (stats["sessions"], stats["opened"], stats["think.calls"], stats["perceive.rows"]) == (1, 1, 1, 1)
    assert stats["pages.free"] + stats["pages.used"] == stats["pages.total"]
    bench.close("a")
    assert bench.thinker.stats()["closed"] == 1
