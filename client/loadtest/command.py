"""`python -m client loadtest`: arguments, progress, outcome."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from ..stream.tls import read_tls
from ..terminal import add_agent, agent_options, count, interrupt, minutes, progress, seconds
from .driver import Plan, Run, run
from .media import FACE, SPEECH
from .search import TARGET, Probe, find, hopeless

HELP = """\
Many users talk with a server in real time, each on a connection of its own. A unit is due every 160 ms whether or not
the server keeps up, and its answer is timed from that moment. The server's admission may refuse users: raise its
--max-sessions and give it --admit-all to find the limit of the machine instead of the configured one.

--find-capacity doubles the number of users until fewer than 99% of the units are on time or somebody is refused, then
narrows it down; --sessions is then the most to try, --minutes the length of each probe.

exit status: 0 it ran and nobody met an error, 1 some did, 2 it could not start."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `loadtest` takes beside the address."""
    add = parser.add_argument
    add("--sessions", type=count, default=4, metavar="N", help="users at once (default %(default)s)")
    add("--minutes", type=minutes, default=1.0, metavar="M", help="how long each talks (default %(default)s)")
    add("--find-capacity", action="store_true", help="find the most users with 99%% of the units on time")
    add("--warm-up", type=seconds, default=2.0, metavar="S", help="first seconds of each user, logged and not judged "
        "(default %(default)s)")  # fmt: skip
    add("--audio", type=Path, default=SPEECH, metavar="FILE", help="what users say (default: the demo's speech)")
    add("--video", type=Path, default=FACE, metavar="FILE", help="what users show (default: the demo's face)")
    add_agent(parser)
    add("--out", type=Path, default=Path("build/runs/loadtest"), metavar="DIR", help="(default %(default)s)")


def execute(args: argparse.Namespace, console: Console) -> int:
    """Runs the test and writes its files. Raises DuplexError or MediaError if it cannot start."""
    from client.loadtest import files  # matplotlib takes its time, and other commands do without

    plan = Plan(
        url=args.url,
        sessions=args.sessions,
        seconds=args.minutes * 60,
        model=args.model,
        options=agent_options(args),
        warm_up=args.warm_up,
        timeout=args.timeout,
        tls=read_tls(args),
        audio=args.audio,
        video=args.video,
    )
    if args.find_capacity:
        capacity, probes, outcome = asyncio.run(_search(plan, console))
        summary = files.write(outcome, args.out, probes, capacity)
        console.print(f"[bold]{capacity} sessions[/] keep {TARGET:.0%} of the units on time")
    else:
        outcome = asyncio.run(_once(plan, console))
        summary = files.write(outcome, args.out)
    _tell(summary, args.out, console)
    return 1 if summary["errors"] and not args.find_capacity else 0


async def _once(plan: Plan, console: Console) -> Run:
    stop = asyncio.Event()
    with interrupt(stop), _ticking(plan, console) as tick:
        return await run(plan, stop=stop, on_tick=tick)


async def _search(plan: Plan, console: Console) -> tuple[int, list[Probe], Run]:
    """Capacity, probes, and the run of the largest probe that held (or of the smallest, if none did)."""
    stop = asyncio.Event()
    runs: dict[int, Run] = {}

    async def probe(sessions: int) -> Probe:
        if stop.is_set():
            raise KeyboardInterrupt
        one = replace(plan, sessions=sessions)
        with _ticking(one, console) as tick:
            outcome = runs[sessions] = await run(one, stop=stop, give_up=hopeless(), on_tick=tick)
        share = outcome.on_time_share
        refused = sum(user.error is not None for user in outcome.users)
        held = share >= TARGET and not refused and not outcome.gave_up
        times = sorted(u.response_ms for u in outcome.judged() if u.response_ms is not None)
        p99 = round(times[int(0.99 * (len(times) - 1))], 1) if times else None
        word = "[green]held[/]" if held else "[red]not held[/]"
        console.print(f"{sessions:4} sessions: {word}, {share:.2%} on time, p99 {p99} ms, {refused} with an error")
        return Probe(sessions, held, round(share, 5), refused, p99)

    with interrupt(stop):
        capacity, probes = await find(probe, plan.sessions)
    return capacity, probes, runs[capacity or min(runs)]


def _tell(summary: dict[str, Any], folder: Path, console: Console) -> None:
    share, response = summary["on_time"]["share"], summary["ms"]["response"]
    colour = "green" if share >= TARGET else "red"
    console.print(f"[bold {colour}]{share:.2%} of {summary['units']['due']} units on time[/]")
    if response:
        figures = "  ".join(f"{name} {response[name]:.0f}" for name in ("p50", "p95", "p99"))
        sound = summary["playout"]
        console.print(f"response {figures} ms   underruns {sound['underruns']}, lost {sound['lost_sound_ms']:.0f} ms")
    for message in summary["error_messages"]:
        console.print(f"[red]{escape(message)}[/]", soft_wrap=True)
    if not summary["driver_fit"]:
        console.print("[yellow]the driver itself was late: this machine is too busy to measure with[/]")
    console.print(escape(str(folder / "report.html")), soft_wrap=True)


@contextlib.contextmanager
def _ticking(plan: Plan, console: Console) -> Iterator[Callable[[Run], None]]:
    with progress(console, transient=True) as bar:
        task = bar.add_task(f"{plan.sessions} users", total=plan.sessions * plan.units, info="")

        def tick(outcome: Run) -> None:
            answered = [unit for user in outcome.users for unit in user.answered()]
            late = sum(not unit.on_time for unit in answered)
            bar.update(task, completed=len(answered), info=f"{late} late")

        yield tick
