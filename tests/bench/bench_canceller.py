"""What the echo canceller costs a unit, and what it leaves of an echo, over conversations of held-out voices.

The agent's part of each conversation comes back at every level and delay (rooms differ); what it leaves is counted over
the units in which there is an echo, the first words, from which it learns the path, among them.

    python tests/bench/bench_canceller.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
from summary import machine, merge

from engine_builder.training.world.conversation import Conversation, Studio
from engine_builder.training.world.echo import Echo
from engine_builder.training.world.speech.agent_voice import UNIT
from triton_models.runtime.echo_canceller import EchoCanceller

LEVELS, DELAYS = (-6, -12, -24), (0.04, 0.12, 0.3)
_ECHO = 1e-7  # mean square, from which there is one


def measure(talk: Conversation, level: float, delay: float, seed: int) -> tuple[float, list[float]]:
    """dB by which the echo of one conversation is quieter, and milliseconds of each unit that is not passed through."""
    path = Echo(level=(level, level), delay=(delay, delay)).path(np.random.default_rng(seed))
    canceller = EchoCanceller(UNIT)
    before = after = 0.0
    taken = []
    for played, user in zip(talk.agent_pcm, talk.user_pcm, strict=False):
        echo = path.heard(played)
        begin = time.perf_counter()
        out = canceller.clean(user + echo, played)
        taken.append((time.perf_counter() - begin) * 1e3)
        if float((echo**2).mean()) > _ECHO:
            before += float((echo**2).sum())
            after += float(((out - user) ** 2).sum())
    worked = [ms for ms in taken if ms > 0.1]
    return 10 * float(np.log10(before / after)), worked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--talks", type=int, default=6)
    parser.add_argument("--cache", type=Path, default=Path("build/cache"), help="rendered voices")
    parser.add_argument("--out", type=Path, default=Path("build/runs/bench"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    studio = Studio(args.cache, "held_out")
    talks = [studio.conversation(seed, 150) for seed in range(args.talks)]
    rows = []
    for level in LEVELS:
        for delay in DELAYS:
            runs = [measure(talk, level, delay, seed) for seed, talk in enumerate(talks)]
            taken = [ms for _, run in runs for ms in run]
            row = {
                "level_db": level,
                "delay_ms": round(delay * 1e3),
                "quieter_db": round(statistics.median(db for db, _ in runs), 1),
                "p50_ms": round(statistics.median(taken), 3),
                "p99_ms": round(statistics.quantiles(taken, n=100)[98], 3),
            }
            rows.append(row)
            print(f"echo canceller: {row}", flush=True)
    merge(args.out, {"canceller": rows, "machine": machine()})


if __name__ == "__main__":
    main()
