"""An hour of conversation, faster than real time: does a session cost at minute 60 what it cost at minute 1?

One session with window retention goes through the serving runtime (thinker and performer workers, paged pool, real
engines; no Triton, nothing paced) for 22,500 units. Per minute of conversation the median time of a unit and the
resident memory at its end are written down.

A machine is not equally fast for ten minutes (stages without any history drift by a tenth), so the ratio is taken in
pairs: after the last minute a second session is opened and its window filled, and the two take turns, unit by unit.
`hour_tick_ratio` is the old session's median over that of the other, which is in its minute 1;
`hour_tick_ratio_unpaired` compares the last and the first minute of the run as they were.

    python tests/bench/bench_hour.py --engines build/engines/tiny
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from rich.progress import Progress
from summary import machine, merge

from triton_models.service.local import LocalRuntime, LocalSession

UNITS_PER_MINUTE = 375
STAGES = ("perceive", "think", "perform", "render", "total")


@dataclass(frozen=True)
class Hour:
    """rows: one a minute of conversation; old_ms, young_ms: median units of a minute's pairs after them."""

    rows: list[dict[str, float]]
    old_ms: float
    young_ms: float


async def converse(runtime: LocalRuntime, minutes: int, retention: object, window: int) -> Hour:
    """Runs `minutes` of units of noise at speech level; `window`: units after which a session's cost is flat."""
    rng = np.random.default_rng(0)
    config = runtime.config
    process = psutil.Process()
    rows = []

    async def step(session: LocalSession) -> dict[str, float]:
        pcm = rng.standard_normal(config.audio.unit_samples, dtype=np.float32) * 0.1
        frames = rng.integers(0, 256, (4, config.video.height, config.video.width, 3), dtype=np.uint8)
        return (await session.step(pcm, frames)).ms

    async with await runtime.open(retention=retention) as session:
        with Progress(transient=True) as progress:
            task = progress.add_task("minutes", total=minutes)
            for minute in range(1, minutes + 1):
                units = [await step(session) for _ in range(UNITS_PER_MINUTE)]
                row = {f"{stage}_ms": round(statistics.median(ms[stage] for ms in units), 3) for stage in STAGES}
                rows.append({"minute": minute, **row, "resident_mb": round(process.memory_info().rss / 1e6, 1)})
                progress.advance(task)
        async with await runtime.open(retention=retention) as young:
            for _ in range(window):
                await step(young)
            pairs = [((await step(session))["total"], (await step(young))["total"]) for _ in range(UNITS_PER_MINUTE)]
    return Hour(rows, *(statistics.median(side) for side in zip(*pairs, strict=True)))


def plot(rows: list[dict[str, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 5), sharex=True, constrained_layout=True)
    minutes = [row["minute"] for row in rows]
    for stage in ("think", "perform", "total"):
        top.plot(minutes, [row[f"{stage}_ms"] for row in rows], label=stage)
    top.set(ylabel="ms a unit (median)", ylim=(0, None), title="One session, an hour of conversation")
    top.legend(frameon=False, ncols=3)
    bottom.plot(minutes, [row["resident_mb"] for row in rows], color="tab:gray")
    bottom.set(xlabel="minute of the conversation", ylabel="resident memory, MB", ylim=(0, None))
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=Path, default=Path("build/engines/tiny"))
    parser.add_argument("--minutes", type=int, default=60, help="minutes of conversation (default: 60)")
    parser.add_argument("--sink", type=int, default=0, help="first units that are kept for ever (default: 0)")
    parser.add_argument("--recent", type=int, default=16, help="last units that are kept (default: 16, the tutor's)")
    parser.add_argument("--out", type=Path, default=Path("build/runs/bench"))
    args = parser.parse_args()
    if args.minutes < 2:
        parser.error("--minutes: expected at least 2, the first and the last are compared")
    args.out.mkdir(parents=True, exist_ok=True)
    retention = {"window": {"sink": args.sink, "recent": args.recent}}
    begin = time.monotonic()
    with LocalRuntime.load(args.engines) as runtime:
        hour = asyncio.run(converse(runtime, args.minutes, retention, args.sink + args.recent))
    rows = hour.rows
    with (args.out / "hour.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    plot(rows, args.out / "hour.png")
    first, last = rows[0], rows[-1]
    result: dict[str, object] = {
        "hour_tick_ratio": round(hour.old_ms / hour.young_ms, 3),
        "hour_tick_ratio_unpaired": round(last["total_ms"] / first["total_ms"], 3),
        "hour_memory_ratio": round(last["resident_mb"] / first["resident_mb"], 4),
        "hour_minutes": args.minutes,
        "machine": machine(),
    }
    merge(args.out, result)
    print(f"{args.minutes} minutes in {time.monotonic() - begin:.0f} s")
    print(f"in turns: {hour.old_ms:.2f} ms a unit after {args.minutes} minutes, ", end="")
    print(f"{hour.young_ms:.2f} ms of a session in its first: ", end="")
    print(f"ratio {result['hour_tick_ratio']} (last minute to first of the run: {result['hour_tick_ratio_unpaired']})")
    print(f"resident {first['resident_mb']} -> {last['resident_mb']} MB: ", end="")
    print(f"ratio {result['hour_memory_ratio']}")


if __name__ == "__main__":
    main()
