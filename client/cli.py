"""`python -m client`: talk to a served model from files, ask what it is, or put it under load."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.live import Request, hold, summarise, write_files
from client.loadtest import command as loadtest
from client.media.source import TypedText, read_source
from client.stream.client import DuplexClient
from client.stream.errors import DuplexError, MediaError

DEFAULT_URL = "127.0.0.1:8001"
EXAMPLES = """examples:
  python -m client converse --audio question.wav --out build/runs/first
  python -m client converse --video talk.mp4 --seed 7 --prompt "You are a patient tutor." --out build/runs/tutor
  python -m client converse --audio in.wav --video face.jpg --text-at 4.5 "and in French?" --out build/runs/typed
  python -m client info
  python -m client loadtest --sessions 8 --minutes 1

A conversation takes as long as it would with a live user: units go out every 160 ms, when they would have been
recorded. Ctrl-C ends it early; what was said until then is written all the same.
exit status: 0 the whole conversation was answered, 1 the server or the connection failed on the way (files are
written), 2 it could not start (files, arguments, no server)."""


def parse_retention(text: str) -> str | dict[str, dict[str, int]]:
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


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m client", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = top.add_subparsers(dest="command", required=True)
    talk = commands.add_parser(
        "converse",
        help="hold one conversation in real time and write conversation.mp4, timeline.png and report.json",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    user = talk.add_argument_group("the user")
    user.add_argument("--audio", type=Path, metavar="FILE", help="what the user says: any audio file, or the sound of "
                      "a video; without it the sound of --video is used, or silence")  # fmt: skip
    user.add_argument("--video", type=Path, metavar="FILE", help="what the user shows: a video or a picture of any "
                      "size and rate, cropped around its centre to the model's shape; without it: grey")  # fmt: skip
    user.add_argument("--loop-video", action="store_true", help="start a video that is too short again instead of "
                      "holding its last picture")  # fmt: skip
    user.add_argument("--text", action="append", default=[], metavar="TEXT", help="typed at the start; repeatable")
    user.add_argument("--text-at", action="append", nargs=2, default=[], metavar=("SECONDS", "TEXT"), help="typed "
                      "later; repeatable")  # fmt: skip
    user.add_argument("--tail", type=float, default=2.0, metavar="S", help="seconds of silence after the user's last "
                      "word (default 2)")  # fmt: skip
    user.add_argument("--seconds", type=float, metavar="S", help="stop after this long")
    agent = talk.add_argument_group("the agent (what is not given is the server's choice)")
    agent.add_argument("--prompt", metavar="TEXT", help="who the agent is; read before the first unit")
    agent.add_argument("--seed", type=int, metavar="N", help="of the noise; same seed and input, same answer")
    agent.add_argument("--retention", type=parse_retention, metavar="POLICY", help="what it remembers: full, "
                       "window:SINK,RECENT or window_language:SINK,RECENT,LANGUAGE, in units of 160 ms")  # fmt: skip
    agent.add_argument("--steps", type=int, metavar="N", help="solver steps a unit")
    agent.add_argument("--session", metavar="ID", help="name of the session, a number or a word (default: random)")
    talk.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the three files go")
    talk.add_argument("--no-reconnect", action="store_true", help="a connection that is lost ends the conversation; "
                      "else it is dialled again, and the conversation goes on with what is said then")  # fmt: skip
    talk.add_argument("--weights", metavar="WORD", help="for the report, where the server does not say what it serves")
    info = commands.add_parser("info", help="what a server serves: shapes, parameters, versions")
    info.add_argument("--json", action="store_true", help="as JSON")
    load = commands.add_parser(
        "loadtest",
        help="many users in real time: share of units on time, or how many users a server carries",
        description=loadtest.HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    loadtest.add_arguments(load, parse_retention)
    for command in (talk, info, load):
        command.add_argument("--url", default=DEFAULT_URL, help=f"gRPC address of Triton (default {DEFAULT_URL})")
        command.add_argument("--model", default="duplex", help="model name (default duplex)")
        command.add_argument("--timeout", type=float, default=10.0, metavar="S", help="seconds without an answer that "
                             "count as a failure (default 10)")  # fmt: skip
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status."""
    args = parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        if args.command == "loadtest":
            return loadtest.execute(args, console)
        return _info(args) if args.command == "info" else _converse(args, console)
    except (MediaError, DuplexError) as error:
        console.print(f"[red]{escape(str(error))}[/red]", soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("interrupted")
        return 130


def _converse(args: argparse.Namespace, console: Console) -> int:
    given: dict[str, Any] = {
        "prompt": args.prompt,
        "seed": args.seed,
        "retention": args.retention,
        "solver_steps": args.steps,
    }
    options = {name: value for name, value in given.items() if value is not None}
    typed = [TypedText(0.0, text) for text in args.text]
    for seconds, text in args.text_at:
        try:
            typed.append(TypedText(float(seconds), text))
        except ValueError:
            raise MediaError(f"--text-at: expected seconds and a text, got {seconds!r} {text!r}") from None
    session = int(args.session) if args.session and args.session.isdecimal() else args.session
    request = Request(args.url, args.model, options, session, args.timeout, not args.no_reconnect)
    talk = asyncio.run(
        hold(
            request,
            lambda shape: read_source(
                shape,
                audio=args.audio,
                video=args.video,
                typed=typed,
                loop=args.loop_video,
                tail=args.tail,
                seconds=args.seconds,
            ),
            args.out,
            console,
        )
    )
    with talk.recording:
        data = write_files(talk, args.out, console, weights=args.weights)
    summarise(data, args.out, console)
    return 1 if talk.errors else 0


def _info(args: argparse.Namespace) -> int:
    async def ask() -> dict[str, Any]:
        async with await DuplexClient.connect(args.url, model=args.model, timeout=args.timeout) as client:
            shape = client.shape
            return {
                "server": f"{client.server.get('name', '?')} {client.server.get('version', '?')}",
                "model": client.model,
                "pcm": f"float32 [{shape.samples}], {shape.sample_rate} Hz mono",
                "frames": f"uint8 {list(shape.frames)}, 25 fps RGB",
                "units under way": client.served.unanswered,
                **{f"parameter {name}": value for name, value in sorted(client.parameters.items())},
            }

    found = asyncio.run(ask())
    if args.json:
        json.dump(found, sys.stdout, indent=2)
        print()
        return 0
    table = Table(show_header=False, box=None)
    for name, value in found.items():
        table.add_row(f"[dim]{escape(name)}[/dim]", escape(str(value)))
    Console().print(table)
    return 0
