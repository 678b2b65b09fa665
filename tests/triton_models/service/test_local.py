"""The server without Triton: the duplex loop over a stage of real engines."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engine_builder.tokenizer import heard_ids
from triton_models.runtime.budget.costs import CostTable
from triton_models.runtime.kv import pool as kv_pool
from triton_models.runtime.messages import SessionError
from triton_models.service.local import AgentUnit, LocalRuntime, UserUnit

pytestmark = pytest.mark.engine


@pytest.fixture
def runtime(mini_engines: Path) -> Iterator[LocalRuntime]:
    with LocalRuntime.load(mini_engines, pages=200, page_tokens=8) as made:
        yield made


def user(units: int, seed: int = 0) -> list[UserUnit]:
    rng = np.random.default_rng(seed)
    return [
        UserUnit(
            rng.normal(0, 0.1, 2560).astype(np.float32),
            rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8),
            "hello you" if unit == 1 else "",
        )
        for unit in range(units)
    ]


def test_a_whole_conversation_in_one_call(runtime: LocalRuntime) -> None:
    said = runtime.converse(user(5), prompt="you are welcome", seed=3, steps=2)
    assert [unit.unit for unit in said] == [0, 1, 2, 3, 4]
    for unit in said:
        assert unit.state in runtime.config.language.states
        assert (unit.pcm.shape, unit.frames.shape) == ((2560,), (4, 32, 32, 3))
        assert unit.steps == 2
        assert set(unit.ms) == {"perceive", "think", "queue", "perform", "render", "total"}
    assert runtime.stats()["thinker.sessions"] == 0
    assert runtime.stats()["thinker.pages.used"] == 0


def test_what_was_heard_is_told_apart_from_what_was_said(runtime: LocalRuntime) -> None:
    said = runtime.converse(user(8), prompt="be kind")
    names = {token: f" {text}" for text, token in heard_ids(runtime.config.language).items()}
    assert [unit.heard for unit in said] == ["".join(names.get(token, "") for token in unit.slots) for unit in said]
    assert any(unit.heard for unit in said)
    assert any(unit.text for unit in said)
    assert not any("heard" in unit.text for unit in said)


def test_a_seed_replays_and_another_seed_does_not(runtime: LocalRuntime) -> None:
    first, again, other = (runtime.converse(user(4), seed=seed) for seed in (1, 1, 2))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.pcm, two.pcm)
        np.testing.assert_array_equal(one.frames, two.frames)
    assert not np.array_equal(first[0].z_audio, other[0].z_audio)


def test_sessions_at_once_answer_as_they_do_alone(runtime: LocalRuntime) -> None:
    async def together() -> list[list[AgentUnit]]:
        async def talk(seed: int) -> list[AgentUnit]:
            async with await runtime.open(seed=seed) as session:
                return [await session.step(u.pcm, u.frames, u.text) for u in user(4, seed)]

        return list(await asyncio.gather(*(talk(seed) for seed in range(6))))

    for seed, said in enumerate(asyncio.run(together())):
        for one, two in zip(said, runtime.converse(user(4, seed), seed=seed), strict=True):
            np.testing.assert_array_equal(one.pcm, two.pcm)


def test_bad_input_leaves_the_session_as_it_was(runtime: LocalRuntime) -> None:
    async def run() -> None:
        good = user(2)
        async with await runtime.open(seed=9) as session:
            await session.step(good[0].pcm, good[0].frames)
            with pytest.raises(SessionError, match="INVALID_ARGUMENT: pcm: expected 2560 float32 samples"):
                await session.step(np.zeros(100, np.float32), good[1].frames)
            unit = await session.step(good[1].pcm, good[1].frames)
            assert unit.unit == 1
            await session.close()

    asyncio.run(run())


def test_a_bad_option_is_refused(runtime: LocalRuntime) -> None:
    with pytest.raises(SessionError, match=r"INVALID_ARGUMENT: options\.retention"):
        runtime.converse(user(1), retention={"window": {}})
    with pytest.raises(SessionError, match=r"options\.solver_steps: expected an integer 1 to 16, got 99"):
        runtime.converse(user(1), steps=99)
    assert runtime.stats()["thinker.sessions"] == 0


def test_measured_costs_cut_steps_that_cannot_be_on_time(mini_engines: Path) -> None:
    costs = CostTable.linear({"perform": (100.0, 0.0)})  # two of them do not fit into a unit
    with LocalRuntime.load(mini_engines, pages=50, page_tokens=8, costs=costs) as runtime:
        assert runtime.converse(user(1), steps=4)[0].steps == 1


def test_closing_the_runtime_fails_what_is_under_way(mini_engines: Path) -> None:
    async def run() -> None:
        with LocalRuntime.load(mini_engines, pages=50, page_tokens=8) as runtime:
            session = await runtime.open()
            unit = user(1)[0]
            step = asyncio.ensure_future(session.step(unit.pcm, unit.frames))
            await asyncio.sleep(0)
        with pytest.raises(SessionError, match="UNAVAILABLE"):
            await step

    asyncio.run(run())


def test_a_runtime_that_cannot_be_made_says_why(mini_engines: Path) -> None:
    with pytest.raises(ValueError, match="costs: no measurement of 'perform'"):
        LocalRuntime.load(mini_engines, pages=50, page_tokens=8, costs=CostTable([]))
    with pytest.raises(kv_pool.PoolError, match="lower the number of pages"):
        LocalRuntime.load(mini_engines, pages=10**12)
