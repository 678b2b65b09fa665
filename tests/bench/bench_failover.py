"""What a killed server costs those who talk to it: the time until they know, and until another one serves them.

Two servers behind HAProxy with the configuration of build/deploy; in each round people talk in real time, half of them
with `Reconnect(anew=True)`, one server is killed, and started again for the next round. Seconds from the kill.

    python tests/bench/bench_failover.py --engines build/engines/tutor
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import time
from pathlib import Path

from summary import machine, merge

from client.fleet.machines import Balancer, Member, fleet
from client.stream import DuplexClient, DuplexError, Pacer, Reconnect, Resumed
from client.stream.units import quiet

PEOPLE, UNITS, KILL_AFTER = 4, 60, 2.0
LOOK = 1.0  # seconds in which HAProxy has heard from every server


async def talk(balancer: Balancer, anew: bool) -> float | None:
    """One conversation: the moment at which it failed, or, begun anew, had an answer again. None: it went on."""
    news: list[Resumed] = []
    policy = Reconnect(starts=5, anew=True) if anew else False
    async with (
        await DuplexClient.connect(balancer.url) as client,
        client.session(options={"resume": True}, reconnect=policy, on_resume=news.append) as session,
    ):
        units = (quiet(index, client.shape, end=index == UNITS - 1) for index in range(UNITS))
        talking = asyncio.create_task(session.play(units, Pacer()))
        back = None
        try:
            async for answer in session:
                if news and back is None and not answer.lost:
                    back = answer.received
        except DuplexError:
            return time.monotonic()
        finally:
            talking.cancel()
        return back


async def kill_one(members: list[Member], balancer: Balancer) -> tuple[list[float], list[float]]:
    """Seconds until errors, and until answers from elsewhere."""
    talking = [asyncio.create_task(talk(balancer, number % 2 == 1)) for number in range(PEOPLE)]
    await asyncio.sleep(KILL_AFTER)
    members[0].kill()
    killed = time.monotonic()
    moments = await asyncio.gather(*talking)
    failed, served = ([m - killed for m in moments[half::2] if m is not None] for half in (0, 1))
    return failed, served


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=Path, default=Path("build/engines/tutor"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("build/runs/bench"))
    parser.add_argument("--csv", type=Path, default=Path("tests/bench/results/failover.csv"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[int, str, float]] = []
    with fleet(args.engines, args.out / "failover", ("s1", "s2"), "--admit-all") as (members, balancer):
        for number in range(args.rounds):
            for what, found in zip(
                ("error", "served elsewhere"), asyncio.run(kill_one(members, balancer)), strict=True
            ):
                rows += [(number, what, round(seconds, 3)) for seconds in found]
            print(*(row for row in rows if row[0] == number), sep="\n")
            members[0].wait(10)
            members[0].start()
            members[0].wait_ready()
            balancer.wait(len(members))
            time.sleep(LOOK)
    args.csv.parent.mkdir(parents=True, exist_ok=True)
    with args.csv.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("round", "what", "seconds"))
        writer.writerows(rows)
    most = {what: max(s for _, w, s in rows if w == what) for what in dict.fromkeys(w for _, w, _ in rows)}
    print("at most, s:", most)
    merge(args.out, {"failover_seconds": most, "machine": machine()})


if __name__ == "__main__":
    main()
