"""What a guard costs a unit: the time its thread gives to `GuardPost`, with the word list of a hundred words.

Between `begin` and `verdict` a unit is solved, which a sleep of some milliseconds stands for: the guard works then.

    python tests/bench/bench_guard.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from summary import machine, merge

from triton_models.runtime.duplex.guard import GuardPost, GuardSettings, WordList
from triton_models.runtime.metrics import Metrics

SOLVING_SECONDS = 0.005


def measure(units: int, words: int) -> list[float]:
    """Milliseconds of the unit's own thread, by unit."""
    post = GuardPost(WordList([f"word{number}" for number in range(words)]), GuardSettings(), Metrics())
    taken = []
    for unit in range(units):
        begin = time.perf_counter()
        begun = post.begin("s", unit, "speak", f"and so we come to number {unit} of them ")
        between = time.perf_counter()
        time.sleep(SOLVING_SECONDS)
        after = time.perf_counter()
        assert post.verdict(begun).kind == "pass"
        taken.append((between - begin + time.perf_counter() - after) * 1e3)
    post.stop()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=1000)
    parser.add_argument("--words", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("build/runs/bench"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    taken = measure(args.units, args.words)[10:]
    row = {"p50_ms": round(statistics.median(taken), 4), "p99_ms": round(statistics.quantiles(taken, n=100)[98], 4)}
    print(f"guard: {row} a unit, {args.words} words")
    merge(args.out, {"guard": {**row, "words": args.words}, "machine": machine()})


if __name__ == "__main__":
    main()
