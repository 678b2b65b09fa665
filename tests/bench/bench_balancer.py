"""What HAProxy adds to a unit: the same paced stream to a server and through the balancer before it, in turns.

One server, and the configuration of build/deploy. A pair is two sessions at once, one each way, half a unit apart, so
that both meet the same machine; which goes first changes from pair to pair. Per unit the client takes the time from
`send` to the response coming off the socket and subtracts what the server says it took itself (`info.ms.total`), which
leaves client, gRPC and the way. The figure is the median, over all pairs, of the difference of their medians.

    python tests/bench/bench_balancer.py --engines build/engines/tutor
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import statistics
from pathlib import Path

import numpy as np
from summary import machine, merge

from client.fleet.machines import fleet
from client.stream import DuplexClient, Pacer, UserUnit

WARM_UP_UNITS = 6
COLUMNS = ("pair", "direct_first", "direct_ms", "balanced_ms", "direct_way_ms", "balanced_way_ms")


async def stream(url: str, units: int, wait: float) -> tuple[float, float]:
    """One paced session: median milliseconds of a unit, and of what the server did not take."""
    await asyncio.sleep(wait)
    async with await DuplexClient.connect(url) as client, client.session() as session:
        rng, shape = np.random.default_rng(0), client.shape

        def unit(index: int) -> UserUnit:
            pcm = rng.standard_normal(shape.samples, dtype=np.float32) * np.float32(0.1)
            return UserUnit(index, pcm, rng.integers(0, 256, shape.frames, np.uint8), end=index == units - 1)

        sent: dict[int, float] = {}
        made = [unit(index) for index in range(units)]
        talking = asyncio.create_task(session.play(made, Pacer(), lambda u, at: sent.update({u.index: at})))
        trips, ways = [], []
        async for answer in session:
            if answer.unit_index >= WARM_UP_UNITS:
                trips.append((answer.received - sent[answer.unit_index]) * 1e3)
                ways.append(trips[-1] - answer.info["ms"]["total"])
        await talking
    return statistics.median(trips), statistics.median(ways)


async def pair(direct: str, balanced: str, units: int, direct_first: bool) -> tuple[float, float, float, float]:
    waits = (0.0, 0.08) if direct_first else (0.08, 0.0)
    (a, b), (c, d) = await asyncio.gather(stream(direct, units, waits[0]), stream(balanced, units, waits[1]))
    return a, c, b, d


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=Path, default=Path("build/engines/tutor"))
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--units", type=int, default=60, help="units of a session (default: 60 = 10 s)")
    parser.add_argument("--out", type=Path, default=Path("build/runs/bench"))
    parser.add_argument("--csv", type=Path, default=Path("tests/bench/results/balancer.csv"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    with fleet(args.engines, args.out / "balancer", ("s1",), "--admit-all", "--keep-steps") as ([member], balancer):
        direct = f"127.0.0.1:{member.ports['grpc']}"
        for number in range(args.pairs):
            found = asyncio.run(pair(direct, balancer.url, args.units, number % 2 == 0))
            rows.append((number, number % 2 == 0, *(round(ms, 3) for ms in found)))
            print(dict(zip(COLUMNS, rows[-1], strict=True)))
    added = statistics.median(row[5] - row[4] for row in rows)
    print(f"HAProxy adds {added:.2f} ms to a unit (median of {args.pairs} pairs of {args.units} units)")
    args.csv.parent.mkdir(parents=True, exist_ok=True)
    with args.csv.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    merge(args.out, {"balancer_ms": round(added, 3), "machine": machine()})


if __name__ == "__main__":
    main()
