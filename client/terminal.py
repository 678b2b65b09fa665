"""What the commands share in a terminal: values of options, a progress bar, Ctrl-C, the exit status."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from .stream import DuplexError, MediaError

DAY = 86400.0


def _number(text: str, least: float, most: float, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value <= most:  # neither is what is no number
        raise argparse.ArgumentTypeError(f"expected {what}, got {text!r}")
    return value


def seconds(text: str) -> float:
    return _number(text, 0, DAY, "seconds, at most a day of them")


def minutes(text: str) -> float:
    return _number(text, 1e-3, DAY / 60, "minutes, at most a day of them")


def share(text: str) -> float:
    return _number(text, 0, 1, "a share from 0 to 1")


def milliseconds(text: str) -> float:
    return _number(text, 0, 1e4, "milliseconds, at most 10,000 of them")


def rate(text: str) -> float:
    return _number(text, 1e-3, 1e3, "so many a second, at most a thousand")


def _whole(text: str, least: int, most: int, what: str) -> int:
    if not text.isdecimal() or len(text) > 19 or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"expected {what}, got {text!r}")
    return int(text)


def count(text: str) -> int:
    return _whole(text, 1, 10**9, "a number of at least 1")


def port(text: str) -> int:
    return _whole(text, 0, 65535, "a port, from 0 to 65535")


def seed(text: str) -> int:
    return _whole(text, 0, 2**63 - 1, "a number from 0 to 2^63 - 1")


def words(text: str) -> str:
    """What is typed; Python keeps bytes that are no UTF-8 as halves of characters, which nobody could read."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"expected UTF-8, got {text!r}") from None
    return text


def retention(text: str) -> str | dict[str, dict[str, int]]:
    """`full`, `window:SINK,RECENT` or `window_language:SINK,RECENT,LANGUAGE` in the JSON form of the wire contract."""
    names = {"window": ("sink", "recent"), "window_language": ("sink", "recent", "language_recent")}
    kind, _, rest = text.partition(":")
    if text == "full":
        return text
    numbers = [part for part in rest.split(",") if part]
    if kind not in names or len(numbers) != len(names[kind]) or not all(n.isdecimal() for n in numbers):
        raise argparse.ArgumentTypeError(
            f"expected full, window:SINK,RECENT or window_language:SINK,RECENT,LANGUAGE (units), got {text!r}"
        )
    return {kind: dict(zip(names[kind], map(int, numbers), strict=True))}


def add_agent(parser: argparse._ActionsContainer) -> None:
    """Options of a session that more than one command gives; what is not given is the server's choice."""
    add = parser.add_argument
    add("--prompt", type=words, metavar="TEXT", help="who the agent is; read before the first unit "
        "(`python -m client info` names those that the checkpoint knows)")  # fmt: skip
    add("--retention", type=retention, metavar="POLICY", help="what it remembers: full, window:SINK,RECENT or "
        "window_language:SINK,RECENT,LANGUAGE, in units of 160 ms")  # fmt: skip
    add("--steps", type=count, metavar="N", help="solver steps a unit")


def agent_options(args: argparse.Namespace) -> dict[str, Any]:
    """What `add_agent` read, in the words of the wire contract."""
    given = {"prompt": args.prompt, "retention": args.retention, "solver_steps": args.steps}
    return {name: value for name, value in given.items() if value is not None}


def execute(command: Callable[[], int], console: Console, *failures: type[Exception]) -> int:
    """The exit status of `command`: its own, 2 with one sentence for what it could not start with, 130 for Ctrl-C.

    failures: what it may raise beside the client's own errors and those of files.
    """
    try:
        return command()
    except (MediaError, DuplexError, OSError, *failures) as error:
        console.print(f"[red]{escape(str(error))}[/red]", soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("interrupted")
        return 130


def progress(console: Console, *, transient: bool = False) -> Progress:
    """A bar of units; tasks carry a field `info`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=32),
        TextColumn("{task.completed:.0f}/{task.total:.0f} units"),
        TextColumn("{task.fields[info]}"),
        TimeRemainingColumn(compact=True),
    )
    return Progress(*columns, console=console, refresh_per_second=6, transient=transient)


@contextlib.contextmanager
def interrupt(stop: asyncio.Event) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) sets `stop`; the second one works as always."""
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            if loop.remove_signal_handler(number):
                signal.signal(number, handler)

    def once() -> None:
        stop.set()
        restore()

    # Not on Windows, and not outside the main thread: there Ctrl-C stays what it was.
    with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):
        for number in before:
            loop.add_signal_handler(number, once)
    try:
        yield
    finally:
        with contextlib.suppress(NotImplementedError):
            restore()
