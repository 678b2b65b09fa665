"""The real engines under three batching policies in one run: how many paced sessions stay on time?

    step-level      this package: sessions join and leave the batch at every solver step, earliest deadline first
    request-level   what Triton's dynamic batcher gives by itself: a batch runs all its solver steps
    one-at-a-time   no batching at all, neither in the thinker nor in the performer

All three run in the serving runtime (both workers, paged pool, no Triton) on the same engines. Users are paced in real
time and speak out of step. For each policy the number of sessions grows until fewer than 99% of the units are answered
within 160 ms; the policies take turns at every number, so a machine that slows down slows all of them.

    python tests/bench/bench_policies.py --engines build/engines/tiny
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from summary import machine, merge

from triton_models.planner.policies import RequestBatching
from triton_models.runtime.budget.probe import load_costs
from triton_models.runtime.engines.engine import PERFORMER_STEPS, THINKER_STEPS, EngineSet
from triton_models.runtime.performer.scheduler import StepScheduler
from triton_models.service.load import load_engines
from triton_models.service.local import LocalRuntime

UNIT_SECONDS = 0.160
WARM_UP_UNITS = 12
TARGET = 0.99
RETENTION = {"window": {"sink": 4, "recent": 50}}


async def user(runtime: LocalRuntime, number: int, crowd: asyncio.Barrier, units: int, prefill: int) -> list[float]:
    """One paced session; milliseconds from each unit's due time to its response. The window is filled unpaced first."""
    rng = np.random.default_rng(number)
    audio, video = runtime.config.audio, runtime.config.video
    pcm = rng.standard_normal(audio.unit_samples, dtype=np.float32) * np.float32(0.1)
    frames = rng.integers(0, 256, (4, video.height, video.width, 3), dtype=np.uint8)
    late = []
    async with await runtime.open(seed=number, retention=RETENTION) as session:
        for _ in range(prefill):
            await session.step(pcm, frames)
        await crowd.wait()
        start = (time.monotonic() // UNIT_SECONDS + 2) * UNIT_SECONDS + UNIT_SECONDS * number / crowd.parties
        for unit in range(units):
            due = start + unit * UNIT_SECONDS
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await session.step(pcm, frames)
            if unit >= WARM_UP_UNITS:
                late.append((time.monotonic() - due) * 1e3)
    return late


async def crowd(runtime: LocalRuntime, sessions: int, units: int, prefill: int) -> list[float]:
    barrier = asyncio.Barrier(sessions)
    parts = await asyncio.gather(*(user(runtime, i, barrier, units, prefill) for i in range(sessions)))
    return sorted(ms for part in parts for ms in part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=Path, default=Path("build/engines/tiny"))
    parser.add_argument("--units", type=int, default=75, help="paced units a session (default: 75 = 12 s)")
    parser.add_argument("--sessions", type=int, nargs="+", default=[2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14])
    parser.add_argument("--out", type=Path, default=Path("build/runs/bench"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    engines = load_engines(args.engines, (*THINKER_STEPS, *PERFORMER_STEPS))
    costs = load_costs(args.engines, 1)
    if costs is None:
        parser.error(f"{args.engines}: no costs of this machine; run python -m triton_models.measure --engines DIR")
    alone = replace(engines, max_batch=1)
    policies: dict[str, tuple[EngineSet, Callable[[], Any]]] = {
        # Without degradation, so that the policies are compared at one quality.
        "step-level": (engines, lambda: StepScheduler(costs, engines.max_batch, history=768, degrade=False)),
        "request-level": (engines, lambda: RequestBatching(engines.max_batch)),
        "one-at-a-time": (alone, lambda: RequestBatching(1)),
    }
    best = dict.fromkeys(policies, 0)
    open_still = set(policies)
    rows = []
    for sessions in args.sessions:
        for name, (engine_set, make) in policies.items():
            if name not in open_still:
                continue
            with LocalRuntime(engine_set, scheduler=make(), pages=2048) as runtime:
                late = asyncio.run(crowd(runtime, sessions, args.units, prefill=50))
            on_time = sum(ms <= UNIT_SECONDS * 1e3 for ms in late) / len(late)
            p50, p99 = late[len(late) // 2], late[int(0.99 * (len(late) - 1))]
            rows.append((name, sessions, round(on_time, 4), round(p50, 1), round(p99, 1)))
            print(f"{name:14s} {sessions:2d} sessions: {on_time:6.1%} on time, p50 {p50:6.1f}, p99 {p99:6.1f} ms")
            if on_time >= TARGET:
                best[name] = sessions
            else:
                open_still.discard(name)
    with (args.out / "policies.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("policy", "sessions", "on_time", "p50_ms", "p99_ms"))
        writer.writerows(rows)
    ours = best["step-level"]
    merge(
        args.out,
        {
            "tiny_sessions": best,
            "tiny_sessions_vs_request_batching": round(ours / max(1, best["request-level"]), 2),
            "tiny_sessions_vs_one_at_a_time": round(ours / max(1, best["one-at-a-time"]), 2),
            "machine": machine(),
        },
    )
    print(f"sessions at 99% on time: {best}")


if __name__ == "__main__":
    main()
