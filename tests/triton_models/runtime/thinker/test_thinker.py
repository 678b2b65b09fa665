"""The thinker over fake engines: unit clock and commits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from outcomes import error_of

from engine_builder.layout import UnitLayout
from triton_models.runtime.messages import (
    CloseJob,
    OpenJob,
    PerceiveJob,
    PerformJob,
    SessionError,
    ThinkJob,
    ThinkResult,
)
from triton_models.runtime.thinker.thinker import PROMPT_CHUNK, prompt_chunk

pytestmark = pytest.mark.unit

Bench = Any  # the class of conftest.py


def test_units_go_round_in_order(bench: Bench) -> None:
    bench.open("a")
    for unit in range(5):
        thought = bench.unit("a", unit)
        assert thought.unit == unit
        assert thought.state in bench.config.language.states
        assert 1 <= len(thought.slots) <= bench.config.language.slots
        assert set(thought.ms) == {"perceive", "think"}


def test_stages_out_of_order_are_refused_and_harmless(bench: Bench) -> None:
    bench.open("a")
    t = bench.thinker
    assert "think 0 expected perceive 0 before it" in error_of(bench.think(ThinkJob("a", 1, 0))[0], "INVALID_ARGUMENT")
    assert "expected 0, the next one to perceive, got 1" in error_of(
        t.perceive([bench.hear("a", 1)])[0], "INVALID_ARGUMENT"
    )
    t.perceive([bench.hear("a", 0)])
    assert "expected 1, the next one to perceive, got 0" in error_of(
        t.perceive([bench.hear("a", 0)])[0], "INVALID_ARGUMENT"
    )
    assert "perceive 1 expected think 0 before it" in error_of(t.perceive([bench.hear("a", 1)])[0], "INVALID_ARGUMENT")
    assert isinstance(bench.think(ThinkJob("a", 1, 0))[0], ThinkResult)
    t.perceive([bench.hear("a", 1)])  # may run while unit 0 is performed and rendered
    without = bench.think(ThinkJob("a", 1, 1))[0]
    assert "z: think 1 expected the latents of unit 0, got none" in error_of(without, "INVALID_ARGUMENT")
    assert isinstance(bench.think(bench.asks("a", 1, level=None))[0], ThinkResult)


def test_unknown_closed_and_reopened_sessions(bench: Bench) -> None:
    assert "is not open" in error_of(bench.think(ThinkJob("a", 1, 0))[0], "NOT_FOUND")
    bench.open("a")
    with pytest.raises(SessionError, match=r"ALREADY_EXISTS.*'a' is open"):
        bench.open("a")
    bench.close("a", "a", "never opened")
    assert "is not open" in error_of(bench.thinker.perceive([bench.hear("a", 0)])[0], "NOT_FOUND")
    bench.thinker.open(OpenJob("a", 7))
    bench.thinker.close(CloseJob("a", 6))  # a late close of the one before
    assert bench.thinker.open_sessions == 1
    assert "epoch 1 is over" in error_of(bench.thinker.perceive([bench.hear("a", 0)])[0], "ABORTED")


def test_an_epoch_that_was_raised_goes_on_with_the_session(bench: Bench) -> None:
    """An interruption raises the epoch of the output; the history is the same conversation."""
    bench.open("a")
    bench.unit("a", 0)
    hear = bench.hear("a", 1)
    hear = PerceiveJob("a", 9, 1, hear.pcm, hear.frames)
    result = bench.think(ThinkJob("a", 9, 1, "", hear, *bench.latents()))[0]
    assert isinstance(result, ThinkResult)
    assert result.epoch == 9


def test_two_jobs_of_a_session_in_one_call(bench: Bench) -> None:
    bench.open("a")
    results = bench.thinker.perceive([bench.hear("a", 0), bench.hear("a", 0)])
    assert isinstance(results[0], float)
    assert "two jobs in one batch" in error_of(results[1], "INVALID_ARGUMENT")


def test_sessions_are_bounded(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(max_sessions=2)
    bench.open("a", "b")
    with pytest.raises(SessionError, match="RESOURCE_EXHAUSTED: sessions: all 2 of this thinker are open"):
        bench.open("c")


@pytest.mark.parametrize("retention", ["everything", {"window": {"sink": 1}}, None])
def test_bad_retention_is_refused_and_nothing_stays(bench: Bench, retention: object) -> None:
    with pytest.raises(SessionError, match="INVALID_ARGUMENT: retention"):
        bench.open("a", retention=retention)
    assert bench.thinker.open_sessions == 0


def test_the_history_holds_exactly_the_tokens_of_the_unit(bench: Bench) -> None:
    """K of the fake is the token's own value: prompt, then z, e, query, text without padding, slots."""
    bench.open("a", prompt="red green")
    thought = bench.unit("a", 0, text="seven", level=0.3)
    tokenizer = bench.tokenizer
    prompt = [token / 1000 for token in tokenizer.encode("red green")]
    text = [token / 1000 for token in tokenizer.encode("seven")]
    query = bench.config.language.query_id / 1000
    slots = [token / 1000 for token in thought.slots]
    first = [*prompt, 0, 0, 0, 0, 0.3, 0.3, query, *text, *slots]  # z_{-1} = 0, black frames, two audio tokens
    np.testing.assert_allclose(bench.history(thought), first, rtol=1e-6)
    assert thought.origin == 2
    thought = bench.unit("a", 1, level=0.3)
    heard = 0.3 + 0.15  # the encoder's state came along
    second = [0.3, -0.3, -0.3, 1 / 255, heard, heard, query, *(token / 1000 for token in thought.slots)]
    np.testing.assert_allclose(bench.history(thought), [*first, *second], rtol=1e-6)


def test_a_thought_unit_is_handed_over_when_its_history_is_written(make_bench: Callable[..., Bench]) -> None:
    handed: list[tuple[PerformJob, np.ndarray]] = []
    bench = make_bench(hand_over=lambda job: handed.append((job, bench.history(job))))
    bench.open("a", prompt="red", seed=9)
    thought = bench.unit("a", 0)
    ((job, history),) = handed
    assert (job.session, job.epoch, job.unit, job.seed, job.origin) == ("a", 1, 0, 9, 1)
    assert len(history) > 4
    assert thought.history is None, "nobody outside has to name its pages"
    bench.fake("think").crash = RuntimeError("boom")
    bench.think(bench.asks("a", 1))
    assert len(handed) == 1, "a unit that failed has nothing to hand over"


def test_positions_and_mask_of_a_block(bench: Bench) -> None:
    bench.open("a", prompt="red green blue")
    seen: list[dict[str, np.ndarray]] = []
    bench.fake("think").spoil = lambda inputs, _: seen.append(inputs)
    bench.unit("a", 0)
    bench.unit("a", 1, text="red")
    lay = UnitLayout.of(bench.config)
    block = next(x for x in seen[1:] if x["ids"].shape[1] > 1 and x["ids"][0, 0] != bench.config.language.pad_id)
    angle = np.arctan2(block["rope_sin"][0, :, 0], block["rope_cos"][0, :, 0]) % (2 * np.pi)
    expected = np.arange(3 + lay.span, 3 + lay.span + lay.slot_offset) % (2 * np.pi)
    np.testing.assert_allclose(angle, expected, atol=1e-5)
    mask = block["block_mask"][0]
    padding = lay.text_offset + 1  # one of the two text places is used
    assert mask[:, [i for i in range(lay.slot_offset) if i != padding]].all()
    assert mask[:, padding].sum() == 1
    assert mask[padding, padding]


def test_a_long_prompt_goes_in_chunks_and_sees_itself(bench: Bench) -> None:
    prompt = "red green blue " * 50
    bench.open("a", prompt=prompt)
    ids = bench.tokenizer.encode(prompt)
    assert len(ids) > 2 * PROMPT_CHUNK
    assert len(bench.fake("think").batches) == -(-len(ids) // PROMPT_CHUNK)
    assert [prompt_chunk(start) for start in (0, 1023, 1024, 2048, 9000)] == [64, 64, 32, 16, 16], "by the place alone"
    thought = bench.unit("a", 0)
    np.testing.assert_allclose(bench.history(thought)[: len(ids)], np.array(ids) / 1000, rtol=1e-6)
    assert thought.origin == len(ids)


def test_an_opening_that_is_closed_or_dropped_half_way_holds_nothing(bench: Bench) -> None:
    prompt = "red green blue " * 50
    steps = bench.thinker.open_stepwise(OpenJob("a", 1, prompt))
    next(steps)
    next(steps)
    assert bench.blocks.used > 0
    assert "is not open" in error_of(bench.thinker.perceive([bench.hear("a", 0)])[0], "NOT_FOUND")
    bench.close("a")
    assert bench.blocks.used == 0
    with pytest.raises(SessionError, match="ABORTED: session 'a' was closed while it was opening"):
        next(steps)
    steps = bench.thinker.open_stepwise(OpenJob("a", 2, prompt))
    next(steps)
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert bench.blocks.used == 0
    assert bench.thinker.open_sessions == 0


def test_a_window_frees_and_scrubs_what_leaves_it(bench: Bench) -> None:
    bench.open("a", retention={"window": {"sink": 1, "recent": 2}})
    used = []
    for unit in range(12):
        thought = bench.unit("a", unit, level=0.01 * (unit + 1))
        used.append(bench.blocks.used)
    assert max(used[4:]) <= max(used[:4]) + 1
    values = bench.history(thought)
    free = set(range(1, 256)) - set(bench.blocks.owned("a"))
    assert not bench.pool.k[:, sorted(free)].any()
    assert not bench.pool.k[:, 0].any()
    assert values[3] == 0  # unit 0 is pinned: its frames were black
