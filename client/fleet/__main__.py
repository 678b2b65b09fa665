"""`python -m client.fleet`: servers behind HAProxy, two minutes of visitors; one is killed, one drained, one added."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from ..own_server import ServerFailed
from ..stream import DuplexError, MediaError
from ..terminal import count, minutes, rate, seconds
from .load import Visits, run
from .machines import fleet
from .page import write
from .prometheus import Prometheus


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m client.fleet", description=__doc__)
    add = parser.add_argument
    add("--engines", type=Path, required=True, metavar="DIR", help="what every server serves")
    add("--minutes", type=minutes, default=2.0, metavar="M", help="(default: %(default)s)")
    add("--server-sessions", type=count, default=4, metavar="N", help="places of a server; they share this machine, so "
        "what one of them would carry alone says little (default: %(default)s)")  # fmt: skip
    add("--rate", type=rate, default=0.2, metavar="R", help="visitors a second (default: %(default)s)")
    add("--mean", type=seconds, default=12.0, metavar="S", help="of a visit (default: %(default)s)")
    add("--out", type=Path, default=Path("build/runs/fleet"), metavar="DIR", help="(default: %(default)s)")
    args = parser.parse_args(arguments)
    console = Console()
    try:
        page = _show(args, console)
    except (ServerFailed, DuplexError, MediaError, OSError) as error:
        print(f"client.fleet: {error}", file=sys.stderr)
        return 2
    console.print(str(page), soft_wrap=True)
    return 0


def _show(args: argparse.Namespace, console: Console) -> Path:
    flags = ("--admit-all", "--max-sessions", str(args.server_sessions), "--drain-seconds", "30")
    visits = Visits(args.minutes * 60, args.rate, args.mean)
    with ExitStack() as stack:
        members, balancer = stack.enter_context(fleet(args.engines, args.out, ("s1", "s2", "s3", "s4"), *flags, up=3))
        watch = stack.enter_context(Prometheus(args.out, members, balancer))
        story = asyncio.run(run(members, balancer, visits, console.print))
        more: dict[str, Any] = {"prometheus": watch.figures()}
    return write(story, visits, more, args.out)


if __name__ == "__main__":
    sys.exit(main())
