"""Two hundred sessions come and go at random over real engines, and no number of one ever shows up in another.

Every session has a voice, a prompt, a seed and a text of its own. What it was answered in the crowd must equal, bit for
bit, what it is answered alone; a session whose engine row turns into NaN fails, and only that one.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from triton_models.runtime.engines.engine import PERFORMER_STEPS, THINKER_STEPS, Engine, EngineSet
from triton_models.runtime.engines.tokenizer import TextTokenizer
from triton_models.runtime.messages import SessionError
from triton_models.runtime.performer import noise
from triton_models.service.load import load_engines
from triton_models.service.local import AgentUnit, LocalRuntime, LocalSession

pytestmark = pytest.mark.engine

SESSIONS = 200
NAMES = 24  # so many are open at a time, and every name is used again and again
BAD_SAMPLE = np.float32(0.987654)
BAD_WORD = "schwarz"
WORDS = ("red", "green", "blue", "seven", "hello", "drei", "grün", "thanks")


@dataclass(frozen=True)
class Script:
    """One session. `end`: what happens at unit `cut`; "poison.." make the engine of that step answer NaN there."""

    number: int
    units: int
    steps: int
    prompt: str
    retention: object
    cut: int
    end: str

    @property
    def name(self) -> str:
        return f"name{self.number % NAMES}"

    def hear(self, unit: int) -> tuple[np.ndarray, np.ndarray, str]:
        rng = np.random.default_rng([self.number, unit])
        pcm = rng.normal(0, 0.2, 2560).clip(-0.9, 0.9).astype(np.float32)
        frames = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
        text = WORDS[(self.number + unit) % len(WORDS)] if unit % 2 else ""
        if unit == self.cut:
            pcm[0] = BAD_SAMPLE if self.end == "poison perceive" else pcm[0]
            text = BAD_WORD if self.end == "poison think" else text
        return pcm, frames, text


def scripts() -> list[Script]:
    rng = random.Random(2)
    ends = ["whole"] * 8 + ["cancel"] * 4 + ["timeout"] * 4 + ["poison perceive", "poison think", "poison perform"]
    retentions: list[object] = [
        "full",
        {"window": {"sink": 1, "recent": 1}},
        {"window_language": {"sink": 0, "recent": 1, "language_recent": 2}},
    ]
    made = []
    for number in range(SESSIONS):
        units = rng.randint(1, 4)
        prompt = " ".join(rng.choices(WORDS, k=rng.choice([0, 3, 20, 90])))
        cut = rng.randrange(units)
        made.append(Script(number, units, rng.randint(1, 3), prompt, rng.choice(retentions), cut, rng.choice(ends)))
    return made


class Poison:
    """An engine that answers NaN in the rows of poisoned units, which it knows by their input."""

    def __init__(self, step: str, engine: Engine, bad_id: int, bad_noise: frozenset[np.float32]) -> None:
        self._step, self._engine, self._bad_id, self._bad_noise = step, engine, bad_id, bad_noise

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = self._engine.run(inputs)
        if self._step == "perceive":
            outputs["state_out"][inputs["pcm"][:, 0] == BAD_SAMPLE] = np.nan
        elif self._step == "think":
            bad = (inputs["ids"] == self._bad_id).any(axis=1) & (inputs["ids"].shape[1] > 1)
            outputs["k_new"][:, bad, -1] = np.inf
        elif self._step == "perform":
            bad = [x in self._bad_noise for x in inputs["x_video"][:, 0, 0]]
            outputs["velocity_video"][bad] = np.nan
        return outputs


def poisoned(engines: EngineSet, plan: list[Script]) -> EngineSet:
    bad_id = TextTokenizer.load(engines.tokenizer_path, engines.config.language).encode(BAD_WORD)[0]
    solves = [(s.number, s.cut) for s in plan if s.end == "poison perform"]
    bad_noise = frozenset(noise.latents(engines.config, seed, unit)[0][0, 0] for seed, unit in solves)
    return replace(engines, engines={n: Poison(n, e, bad_id, bad_noise) for n, e in engines.engines.items()})


async def open_session(runtime: LocalRuntime, script: Script) -> LocalSession:
    return await runtime.open(
        name=script.name, prompt=script.prompt, seed=script.number, retention=script.retention, steps=script.steps
    )


async def alone(runtime: LocalRuntime, script: Script) -> list[AgentUnit]:
    async with await open_session(runtime, script) as session:
        return [await session.step(*script.hear(unit)) for unit in range(script.units)]


async def in_the_crowd(
    runtime: LocalRuntime, script: Script, turn: asyncio.Lock
) -> tuple[list[AgentUnit], SessionError | None]:
    """What was answered, and the error that ended the session, if one did."""
    answered: list[AgentUnit] = []
    pause = random.Random(script.number)
    async with turn:
        session = await open_session(runtime, script)
        try:
            for unit in range(script.units):
                await asyncio.sleep(pause.random() * 0.003)
                step = asyncio.ensure_future(session.step(*script.hear(unit)))
                if unit == script.cut and script.end == "cancel":
                    await asyncio.sleep(pause.random() * 0.01)
                    step.cancel()
                    await asyncio.wait([step])
                    break
                if unit == script.cut and script.end == "timeout":
                    answered.append(await asyncio.wait_for(step, pause.random() * 0.02))
                else:
                    answered.append(await step)
        except TimeoutError:
            pass
        except SessionError as error:
            return answered, error
        finally:
            await session.close()
    return answered, None


def test_no_session_leaks_into_another(mini_engines: Path) -> None:
    engines = load_engines(mini_engines, (*THINKER_STEPS, *PERFORMER_STEPS))
    plan = scripts()
    with LocalRuntime(engines, pages=600, page_tokens=8) as quiet:

        async def one_by_one() -> list[list[AgentUnit]]:
            return [await alone(quiet, script) for script in plan]

        expected = asyncio.run(one_by_one())

    with LocalRuntime(poisoned(engines, plan), pages=600, page_tokens=8) as crowd:

        async def all_at_once() -> list[tuple[list[AgentUnit], SessionError | None]]:
            turns = {script.name: asyncio.Lock() for script in plan}
            return await asyncio.gather(*(in_the_crowd(crowd, script, turns[script.name]) for script in plan))

        outcomes = asyncio.run(all_at_once())
        stats = crowd.stats()
        crowd.blocks.check_integrity()
        assert (stats["thinker.sessions"], stats["thinker.pages.used"], stats["performer.jobs"]) == (0, 0, 0)
        assert not crowd.pool.k.any()
        assert not crowd.pool.v.any()

    for script, (answered, error), solo in zip(plan, outcomes, expected, strict=True):
        if script.end.startswith("poison"):
            assert error is not None, script
            assert error.code == "INTERNAL", script
            assert "NaN or Inf" in error.message, script
            assert len(answered) == script.cut, script
        else:
            assert error is None, script
            assert len(answered) >= (script.units if script.end == "whole" else script.cut), script
        for got, wanted in zip(answered, solo, strict=False):
            assert (got.unit, got.slots, got.text, got.state) == (wanted.unit, wanted.slots, wanted.text, wanted.state)
            for name in ("z_video", "z_audio", "pcm", "frames"):
                np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name), err_msg=f"{name} of {script}")
    assert stats["thinker.think.rows"] > stats["thinker.think.calls"], "batches were shared"
    assert stats["performer.perform.rows"] > stats["performer.perform.calls"], "ticks were shared"
