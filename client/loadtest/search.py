"""How many sessions a server carries: the largest N for which a probe holds, by doubling and then halving the gap."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from .driver import Run

TARGET = 0.99  # share of units on time


@dataclass(frozen=True)
class Probe:
    """The outcome of one run with `sessions` users."""

    sessions: int
    held: bool
    share: float
    refused: int
    p99_ms: float | None


async def find(probe: Callable[[int], Awaitable[Probe]], most: int) -> tuple[int, list[Probe]]:
    """The largest N <= `most` whose probe held (0 if none did) and all probes, in the order in which they ran.

    It takes for granted that who carries N carries fewer; about 2 log2(N) probes. One that failed by lateness alone is
    repeated once, for a hiccup of the machine is no limit of the server; both show among the probes.
    """
    if most < 1:
        raise ValueError(f"most: expected >= 1 session, got {most}")
    probes: list[Probe] = []
    held, failed, wanted = 0, most + 1, 1
    while failed - held > 1:
        probes.append(await probe(wanted))
        if not probes[-1].held and not probes[-1].refused:
            probes.append(await probe(wanted))
        if probes[-1].held:
            held = wanted
        else:
            failed = wanted
        wanted = min(2 * held, most) if failed > most else (held + failed) // 2
    return held, probes


def hopeless(target: float = TARGET) -> Callable[[Run], bool]:
    """For `driver.run(give_up=..)`: so many units are late already that the target cannot be reached any more."""

    def give_up(run: Run) -> bool:
        late = sum(not unit.on_time for unit in run.judged() if unit.received is not None)  # under way is not late yet
        return late > (1 - target) * run.planned or any(user.error is not None for user in run.users)

    return give_up
