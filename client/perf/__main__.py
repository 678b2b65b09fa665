"""`make perf`: starts a server and drives it with perf_analyzer and with the open loop, for 1, 2 and 4 streams."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from ..loadtest.driver import Plan, run
from ..loadtest.media import Media
from ..own_server import ServerFailed, server
from ..stream import DuplexClient, UnitShape
from ..stream.units import UNIT_SECONDS
from ..terminal import count, execute
from .analyzer import BINARY, AnalyzerError, measure, write_input
from .compare import Row, faults, rows, write

WARM_UP_SECONDS = 2.0
SETTLE_SECONDS = 1.5  # the server's counters are exported twice a second


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 both tools measured, 1 perf_analyzer did not drive the model as it should, 2 nothing started."""
    parser = argparse.ArgumentParser(prog="python -m client.perf", description=__doc__)
    parser.add_argument("--engines", type=Path, default=Path("build/engines/tiny"), metavar="DIR")
    parser.add_argument("--streams", type=count, nargs="+", default=[1, 2, 4], metavar="N")
    parser.add_argument("--units", type=count, default=60, metavar="N", help="units a sequence (default %(default)s)")
    parser.add_argument("--binary", type=Path, default=BINARY, metavar="FILE", help="(default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("build/runs/perf"), metavar="DIR")
    args = parser.parse_args(arguments)
    console = Console(stderr=True)

    def drive() -> int:
        args.out.mkdir(parents=True, exist_ok=True)
        # The tools' figures are wanted also where admission would rather refuse.
        with server(args.engines, args.out / "server", "--admit-all", "--open", "statistics") as facts:
            return _measure(facts["grpc"], facts["metrics"], facts["weights"], args, console)

    return execute(drive, console, AnalyzerError, ServerFailed)


def _measure(url: str, metrics: str, weights: str, args: argparse.Namespace, console: Console) -> int:
    media = Media.read(asyncio.run(_shape(url)))
    table: list[Row] = []
    wrong: list[str] = []
    for streams in args.streams:
        console.print(f"{streams} streams, {args.units * UNIT_SECONDS:.0f} s each tool", style="dim")
        inputs = args.out / f"units-{streams}.json"
        write_input(media, streams, args.units, inputs)
        warm_up = Plan(url, sessions=streams, seconds=WARM_UP_SECONDS, warm_up=0.0)
        asyncio.run(run(warm_up))
        before = counters(metrics)
        measured = measure(
            url, streams, inputs, streams * args.units, args.out / f"analyzer-{streams}", binary=args.binary
        )
        wrong += [f"{streams} streams: {fault}" for fault in faults(measured.requests, args.units)]
        wrong += _uncounted(before, counters(metrics), len(measured.requests), streams)
        outcome = asyncio.run(run(Plan(url, sessions=streams, seconds=args.units * UNIT_SECONDS, warm_up=0.0)))
        table += rows(measured, outcome)
        inputs.unlink()
    page = write(table, args.out)
    summary = {"weights": weights, "load_average": os.getloadavg()[0], "table": table, "faults": wrong}
    (args.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    console.print(page, soft_wrap=True, markup=False, highlight=False)
    for fault in wrong:
        console.print(f"[red]{escape(fault)}[/red]", soft_wrap=True)
    return 1 if wrong else 0


def _uncounted(before: dict[str, float], after: dict[str, float], units: int, streams: int) -> list[str]:
    """Does the server's own account agree that so many units of whole sequences were driven?"""
    grown = {name: after[name] - before[name] for name in after}
    found = {
        "units answered": grown["units.on_time"] + grown["units.late"] == units,
        "no unit and no session refused": grown["refused"] == 0,
        "every session started": grown["admitted"] >= streams,
        "every session ended by sequence_end": grown["admitted"] == grown["completed"],
    }
    return [
        f"{streams} streams: expected {what}, the server counted {grown}" for what, good in found.items() if not good
    ]


def counters(metrics: str) -> dict[str, float]:
    """What the server at `metrics` (host:port) says about units and sessions so far, once that has settled."""
    time.sleep(SETTLE_SECONDS)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy reaches this machine's loopback
    with direct.open(f"http://{metrics}/metrics", timeout=10) as response:
        text = response.read().decode()

    def total(pattern: str) -> float:
        return sum(float(value) for value in re.findall(rf"^wan_streamer_{pattern} (\S+)$", text, re.MULTILINE))

    return {
        "admitted": total("sessions_admitted_total"),
        "completed": total(r'sessions_ended_total\{outcome="completed"\}'),
        "units.on_time": total(r'units_total\{outcome="on_time"\}'),
        "units.late": total(r'units_total\{outcome="late"\}'),
        "refused": total(r"(?:sessions|units)_refused_total\{[^}]*\}"),
    }


async def _shape(url: str) -> UnitShape:
    async with await DuplexClient.connect(url) as client:
        return client.shape


if __name__ == "__main__":
    sys.exit(main())
