"""The thinker over fake engines: unit clock, commits, text, and failures that stay in their row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from engine_builder.layout import UnitLayout
from triton_models.runtime.messages import (
    CloseJob,
    OpenJob,
    PerceiveJob,
    RenderJob,
    RenderResult,
    SessionError,
    ThinkJob,
    ThinkResult,
)
from triton_models.runtime.thinker import PROMPT_CHUNK
from triton_models.runtime.thinker_session import MAX_QUEUED_TEXT

pytestmark = pytest.mark.unit

Bench = Any  # the class of conftest.py


def error_of(result: object, code: str) -> str:
    assert isinstance(result, SessionError), result
    assert result.code == code, result
    return result.message


# -- the unit clock --------------------------------------------------------------------------------------------
def test_units_go_round_in_order(bench: Bench) -> None:
    bench.open("a")
    for unit in range(5):
        thought, rendered = bench.unit("a", unit)
        assert (thought.unit, rendered.unit) == (unit, unit)
        assert thought.state in bench.config.language.states
        assert 1 <= len(thought.slots) <= bench.config.language.slots
        assert set(thought.ms) == {"perceive", "think"}
        assert rendered.pcm.shape == (bench.config.audio.unit_samples,)


def test_stages_out_of_order_are_refused_and_harmless(bench: Bench) -> None:
    bench.open("a")
    t = bench.thinker
    assert "think 0 expected perceive 0 before it" in error_of(bench.think(ThinkJob("a", 1, 0))[0], "INVALID_ARGUMENT")
    assert "expected 0, the next one to perceive, got 1" in error_of(
        t.perceive([bench.hear("a", 1)])[0], "INVALID_ARGUMENT"
    )
    assert "render 0 expected think 0 before it" in error_of(t.render([bench.spoken("a", 0)])[0], "INVALID_ARGUMENT")
    t.perceive([bench.hear("a", 0)])
    assert "expected 1, the next one to perceive, got 0" in error_of(
        t.perceive([bench.hear("a", 0)])[0], "INVALID_ARGUMENT"
    )
    assert "perceive 1 expected think 0 before it" in error_of(t.perceive([bench.hear("a", 1)])[0], "INVALID_ARGUMENT")
    assert isinstance(bench.think(ThinkJob("a", 1, 0))[0], ThinkResult)
    t.perceive([bench.hear("a", 1)])  # may run while unit 0 is performed and rendered
    assert "think 1 expected render 0 before it" in error_of(bench.think(ThinkJob("a", 1, 1))[0], "INVALID_ARGUMENT")
    assert isinstance(t.render([bench.spoken("a", 0)])[0], RenderResult)
    assert "expected 1, the next one to render, got 0" in error_of(
        t.render([bench.spoken("a", 0)])[0], "INVALID_ARGUMENT"
    )
    assert isinstance(bench.think(ThinkJob("a", 1, 1))[0], ThinkResult)


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
    result = bench.think(ThinkJob("a", 9, 1, "", hear))[0]
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


# -- what is committed -----------------------------------------------------------------------------------------
def test_the_history_holds_exactly_the_tokens_of_the_unit(bench: Bench) -> None:
    """K of the fake is the token's own value: prompt, then z, e, query, text without padding, slots."""
    bench.open("a", prompt="red green")
    thought, _ = bench.unit("a", 0, text="seven", level=0.3)
    tokenizer = bench.tokenizer
    prompt = [token / 1000 for token in tokenizer.encode("red green")]
    text = [token / 1000 for token in tokenizer.encode("seven")]
    query = bench.config.language.query_id / 1000
    slots = [token / 1000 for token in thought.slots]
    first = [*prompt, 0, 0, 0, 0, 0.3, 0.3, query, *text, *slots]  # z_{-1} = 0, black frames, two audio tokens
    np.testing.assert_allclose(bench.history(thought), first, rtol=1e-6)
    assert thought.origin == 2
    thought, _ = bench.unit("a", 1, level=0.3)
    heard = 0.3 + 0.15  # the encoder's state came along
    second = [0.3, -0.3, -0.3, 1 / 255, heard, heard, query, *(token / 1000 for token in thought.slots)]
    np.testing.assert_allclose(bench.history(thought), [*first, *second], rtol=1e-6)


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
    thought, _ = bench.unit("a", 0)
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
        thought, _ = bench.unit("a", unit, level=0.01 * (unit + 1))
        used.append(bench.blocks.used)
    assert max(used[4:]) <= max(used[:4]) + 1
    values = bench.history(thought)
    free = set(range(1, 256)) - set(bench.blocks.owned("a"))
    assert not bench.pool.k[:, sorted(free)].any()
    assert not bench.pool.k[:, 0].any()
    assert values[3] == 0  # unit 0 is pinned: its frames were black


# -- slots and text --------------------------------------------------------------------------------------------
def test_slots_end_at_eou_or_when_they_are_used_up(bench: Bench) -> None:
    language = bench.config.language
    word = bench.tokenizer.encode("seven")[0]
    chosen: list[int] = []

    def script(inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> None:
        outputs["logits"][:] = 0
        outputs["logits"][:, chosen[len(bench.fake("think").batches) - 1]] = 1

    bench.open("a")
    bench.fake("think").spoil = script
    speak, eou = language.state_ids[1], language.eou_id
    for unit, (script_ids, slots) in enumerate(
        [
            ([speak, eou], (speak,)),
            ([speak, word, eou], (speak, word)),
            ([speak, word, word, word], (speak, word, word)),
            ([language.query_id, speak], (language.first_state_id, 10)),  # neither may be chosen where it stands
        ]
    ):
        bench.fake("think").batches.clear()
        chosen[:] = [*script_ids, 10, 10]
        thought, _ = bench.unit("a", unit)
        if unit < 3:
            assert thought.slots == slots
        else:
            assert thought.slots[0] == language.first_state_id
            assert not set(thought.slots[1:]) & set(language.special_ids)


def test_state_and_text_are_named_and_characters_wait_for_their_bytes(bench: Bench) -> None:
    bench.open("a")
    smile = bench.tokenizer.encode("🙂")[-4:]  # its four bytes
    wanted: list[int] = []

    def script(inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> None:
        outputs["logits"][:] = 0
        outputs["logits"][:, wanted.pop(0)] = 1

    bench.fake("think").spoil = script
    speak = bench.config.language.state_ids[1]
    wanted[:] = [speak, smile[0], smile[1], 10]
    thought, _ = bench.unit("a", 0)
    assert (thought.state, thought.text) == ("speak", "")
    wanted[:] = [speak, smile[2], smile[3], 10]
    thought, _ = bench.unit("a", 1)
    assert thought.text == "🙂"


def test_text_beyond_a_unit_goes_into_the_next_ones(bench: Bench) -> None:
    bench.open("a")
    typed: list[list[int]] = []

    def watch(inputs: dict[str, np.ndarray], _: object) -> None:
        if inputs["ids"].shape[1] > 1:
            typed.append([token for token in inputs["ids"][0, :-1].tolist() if token])

    bench.fake("think").spoil = watch
    words = bench.tokenizer.encode("one two three four five")
    bench.unit("a", 0, text="one two three")
    bench.unit("a", 1, text="four five")
    bench.unit("a", 2)
    bench.unit("a", 3)
    assert typed == [words[:2], words[2:4], words[4:], []]


def test_too_much_waiting_text_is_refused_and_the_unit_can_be_sent_again(bench: Bench) -> None:
    bench.open("a")
    bench.thinker.perceive([bench.hear("a", 0)])
    text = "one " * (MAX_QUEUED_TEXT + 1)
    message = error_of(bench.think(ThinkJob("a", 1, 0, text[:4096]))[0], "INVALID_ARGUMENT")
    assert f"text: expected at most {MAX_QUEUED_TEXT} more tokens (0 wait), got" in message
    assert isinstance(bench.think(ThinkJob("a", 1, 0, "one"))[0], ThinkResult)


# -- batches and failures --------------------------------------------------------------------------------------
def test_batched_equals_solo_bit_for_bit(make_bench: Callable[..., Bench]) -> None:
    together, alone = make_bench(max_batch=3), make_bench()
    names = [f"s{i}" for i in range(7)]  # more than two full batches
    for i, name in enumerate(names):
        together.open(name, prompt="red " * i)
        alone.open(name, prompt="red " * i)
    for unit in range(4):
        jobs = [
            ThinkJob(n, 1, unit, "seven" if i % 2 else "", together.hear(n, unit, 0.01 * i))
            for i, n in enumerate(names)
        ]
        batched = together.think(*jobs)
        for job, result in zip(jobs, batched, strict=True):
            solo = alone.think(job)[0]
            assert isinstance(result, ThinkResult)
            assert isinstance(solo, ThinkResult)
            assert result.slots == solo.slots
            np.testing.assert_array_equal(together.history(result), alone.history(solo))
        renders = [together.spoken(n, unit, 0.02 * i) for i, n in enumerate(names)]
        for job, result in zip(renders, together.thinker.render(renders), strict=True):
            np.testing.assert_array_equal(result.pcm, alone.thinker.render([job])[0].pcm)
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
    bad_render = RenderJob("b", 1, 0, np.full((1, 2), np.nan, np.float32), np.zeros((2, 3), np.float32))
    rendered = bench.thinker.render([bench.spoken("a", 0), bad_render, bench.spoken("c", 0)])
    assert "z_video: expected finite values" in error_of(rendered[1], "INVALID_ARGUMENT")
    assert isinstance(rendered[2], RenderResult)


@pytest.mark.parametrize(
    ("step", "output", "pass_number"),
    [
        ("perceive", "e_audio", 0),
        ("perceive", "state_out", 0),
        ("think", "logits", 0),
        ("think", "k_new", 0),
        ("think", "v_new", 1),
        ("render", "pcm", 0),
        ("render", "state_out", 0),
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
    jobs = [ThinkJob(name, 1, 1, "", bench.hear(name, 1)) for name in "abc"]
    thought = bench.think(*jobs)
    expected = healthy.think(*jobs)
    if step == "render":
        rendered = bench.thinker.render([bench.spoken(name, 1) for name in "abc"])
        results, others = rendered, healthy.thinker.render([healthy.spoken(name, 1) for name in "abc"])
        np.testing.assert_array_equal(rendered[2].pcm, others[2].pcm)
    else:
        results = thought
        assert thought[2].slots == expected[2].slots
        np.testing.assert_array_equal(bench.history(thought[2]), healthy.history(expected[2]))
    message = error_of(results[1], "INTERNAL")
    assert "'b'" in message
    assert "NaN or Inf" in message
    if step == "think" and pass_number == 0:
        assert bench.blocks.owned("b") == before, "nothing of the row was committed"
    assert np.isfinite(bench.pool.k).all()
    assert np.isfinite(bench.pool.v).all()
    assert error_of(bench.thinker.render([bench.spoken("b", 1)])[0], "INTERNAL") == message, "it only closes now"
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
        results = bench.think(*(ThinkJob(name, 1, unit, "", bench.hear(name, unit)) for name in "ab"))
        if isinstance(results[0], SessionError) or isinstance(results[1], SessionError):
            failed = next(i for i in (0, 1) if isinstance(results[i], SessionError))
            refused = error_of(results[failed], "RESOURCE_EXHAUSTED")
            break
        bench.thinker.render([bench.spoken(name, unit) for name in "ab"])
    assert "kv pages: session" in refused
    other = "ab"[1 - failed]
    bench.close("ab"[failed])
    if isinstance(results[1 - failed], ThinkResult):
        bench.thinker.render([bench.spoken(other, unit)])
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
    assert (stats["sessions"], stats["opened"], stats["think.calls"], stats["render.rows"]) == (1, 1, 1, 1)
    assert stats["pages.free"] + stats["pages.used"] == stats["pages.total"]
    bench.close("a")
    assert bench.thinker.stats()["closed"] == 1
