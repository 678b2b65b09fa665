"""One preset served for real: loop, stage, scheduler and admission's cost table, with paced sessions. OUT/served.json.

    python served.py OUT [--preset v0.1-8b] [--smoke]

Engines are built from a seed, so weights are drawn on the device. The planner's simulation says from measured costs how
many sessions stay on time; as many, and one more, are then really served for 20 s. Both must agree within one session.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from facts import Facts, stage_options
from gpu_plan import config_of
from gpu_work import history_tokens

from engine_builder.build import BuildOptions, build_engines
from engine_builder.checkpoint import save_seed
from engine_builder.config import FRAMES_PER_UNIT, UNIT_MS, ModelConfig
from triton_models.planner.policies import step_level
from triton_models.planner.simulate import capacity
from triton_models.planner.workload import Workload
from triton_models.runtime.budget import probe as cost_probe
from triton_models.runtime.engines.engine import PERFORMER_STEPS, THINKER_STEPS
from triton_models.runtime.performer.scheduler import StepScheduler
from triton_models.service.load import load_engines
from triton_models.service.local import LocalRuntime

ON_TIME = 0.99
PAGE_TOKENS = 16


@dataclass(frozen=True)
class Amount:
    """How much of it. `window`: units that stay visible; `most`: sessions."""

    seconds: float
    window: int
    batch: int
    most: int

    @classmethod
    def day(cls) -> Amount:
        return cls(20.0, 50, 4, 6)

    @property
    def warm_up(self) -> int:
        """Units that are not counted: the history grows to its window first."""
        return self.window


def room(config: ModelConfig, amount: Amount) -> tuple[int, int]:
    """Pages of a session's window (all slots used, ragged ends), and of the pool."""
    pages = (amount.window + 2) * -(-config.unit_positions // PAGE_TOKENS)
    return pages, pages * (amount.most + 1) + 1


async def converse(runtime: LocalRuntime, number: int, count: int, amount: Amount, units: int) -> list[float]:
    """One session: a unit every 160 ms, or when the one before is answered. Milliseconds after the time it was due."""
    audio, video = runtime.config.audio, runtime.config.video
    pcm = np.zeros(audio.unit_samples, dtype=np.float32)
    frames = np.zeros((FRAMES_PER_UNIT, video.height, video.width, 3), dtype=np.uint8)
    late: list[float] = []
    retention = {"window": {"sink": 0, "recent": amount.window}}
    async with await runtime.open(seed=number, retention=retention) as session:
        due = time.perf_counter() + number / count * UNIT_MS / 1e3
        for _ in range(units):
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            due = max(due, time.perf_counter() - UNIT_MS / 1e3)  # who is a whole unit behind lets units go, as a client
            await session.step(pcm, frames)
            late.append((time.perf_counter() - due) * 1e3)
            due += UNIT_MS / 1e3
    return late[amount.warm_up :]


def serve(runtime: LocalRuntime, count: int, amount: Amount) -> dict[str, Any]:
    """`count` sessions at once: the share of their units that was on time, and how long units took."""
    units = amount.warm_up + max(1, round(amount.seconds * 1e3 / UNIT_MS))

    async def all_of_them() -> list[list[float]]:
        return await asyncio.gather(*(converse(runtime, n, count, amount, units) for n in range(count)))

    late = [ms for session in asyncio.run(all_of_them()) for ms in session]
    return {
        "units": len(late),
        "on_time": round(sum(ms <= UNIT_MS for ms in late) / len(late), 4),
        "median_ms": round(statistics.median(late), 1),
        "p95_ms": round(sorted(late)[-(-95 * len(late) // 100) - 1], 1),
    }


def _on_time(runtime: LocalRuntime, count: int, amount: Amount, save: Callable[[str, Any], None]) -> bool:
    result = serve(runtime, count, amount)
    save(f"{count} sessions", result)
    return result["on_time"] >= ON_TIME


def main() -> None:
    args = stage_options()
    smoke = args.smoke
    amount = Amount(0.16, 1, 2, 1) if smoke else Amount.day()
    config = config_of(args.preset, smoke)
    if smoke:
        config = replace(config, solver=replace(config.solver, steps=1))
    first = {"preset": config.name, "seconds": amount.seconds, "weights": "random, drawn on the device"}
    save = Facts(args.out / "served.json", **first).save
    begin = time.monotonic()
    pages, pool = room(config, amount)
    save_seed(config, 0, args.out / "checkpoint", "random (seed 0), not trained")
    options = BuildOptions(
        target="torch-cuda",
        precision="float32" if smoke else "bfloat16",
        max_batch=amount.batch,
        max_pages=pages,
        pool_pages=pool,
        page_tokens=PAGE_TOKENS,
    )
    directory = args.out / "engines"
    build_engines(args.out / "checkpoint", directory, options)
    device = "cpu" if smoke else "0"
    engines = load_engines(directory, (*THINKER_STEPS, *PERFORMER_STEPS), device=device)
    save("loaded after s", round(time.monotonic() - begin, 1))
    steps = config.solver.steps
    if smoke:  # in the interpreter a call takes as long as a session of the day
        cost_probe.ROUNDS = cost_probe.REPEATS = 1
    costs = cost_probe.probe(engines, directory, PAGE_TOKENS, 1, device=device)
    save("costs", [[cost.step, cost.batch, cost.history, round(cost.ms, 3)] for cost in costs.costs])
    # A model with random weights writes as many words as it may.
    slots = (config.language.slots,) * 2
    history = history_tokens(config, amount.window * UNIT_MS / 1e3, slots[0])
    warm_up = min(2.0, amount.seconds / 2)
    load = Workload(
        seconds=amount.seconds, solver_steps=steps, devices=1, history=history, slots=slots, warmup_seconds=warm_up
    )
    predicted = capacity(load, costs, step_level(amount.batch), seeds=2, limit=amount.most)
    save("predicted sessions", predicted)
    scheduler = StepScheduler(costs, amount.batch, history=history, degrade=False)  # as the simulation's
    with LocalRuntime(engines, pages=pool, page_tokens=PAGE_TOKENS, scheduler=scheduler) as runtime:
        save("rehearsed after s", round(time.monotonic() - begin, 1))
        count = max(1, predicted)
        enough = _on_time(runtime, count, amount, save)
        other = count + 1 if enough else count - 1
        more = 1 <= other <= amount.most and _on_time(runtime, other, amount, save)
    served = max([0, *[n for n, met in ((count, enough), (other, more)) if met]])
    save("served sessions", served)
    save("agree", abs(served - predicted) <= 1)


if __name__ == "__main__":
    main()
