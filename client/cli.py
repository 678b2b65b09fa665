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

from .live import Request, hold, summarise, write_files
from .loadtest import command as loadtest
from .media.source import TypedText, read_source
from .stream import DuplexClient, MediaError
from .stream.tls import add_tls, read_tls
from .terminal import add_agent, agent_options, execute, seconds, seed, words

DEFAULT_URL = "127.0.0.1:8001"
EXAMPLES = """examples:
  python -m client converse --audio question.wav --out build/runs/first
  python -m client converse --video talk.mp4 --seed 7 --prompt "german man" --out build/runs/tutor
  python -m client converse --audio in.wav --video face.jpg --text-at 4.5 "and in French?" --out build/runs/typed
  python -m client info
  python -m client loadtest --sessions 8 --minutes 1

A conversation takes as long as it would with a live user: units go out every 160 ms, when they would have been
recorded. Ctrl-C ends it early; what was said until then is written all the same.
exit status: 0 the whole conversation was answered, 1 the server or the connection failed on the way (files are
written), 2 it could not start (files, arguments, no server)."""


def _session(text: str) -> int | str:
    """A number is one where the protocol has room for it."""
    return int(text) if text.isdecimal() and int(text) < 2**63 else words(text)


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
    _talk_arguments(talk)
    info = commands.add_parser("info", help="what a server serves: shapes, parameters, versions")
    info.add_argument("--json", action="store_true", help="as JSON")
    load = commands.add_parser(
        "loadtest",
        help="many users in real time: share of units on time, or how many users a server carries",
        description=loadtest.HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    loadtest.add_arguments(load)
    for command in (talk, info, load):
        add = command.add_argument
        add("--url", default=DEFAULT_URL, help="gRPC address of Triton (default %(default)s)")
        add("--model", type=words, default="duplex", help="model name (default %(default)s)")
        add("--timeout", type=seconds, default=10.0, metavar="S", help="seconds without an answer that count as a "
            "failure (default %(default)g)")  # fmt: skip
        add_tls(command)
    return top


def _talk_arguments(talk: argparse.ArgumentParser) -> None:
    add = talk.add_argument_group("the user").add_argument
    add("--audio", type=Path, metavar="FILE", help="what the user says: any audio file, or the sound of a video; "
        "without it the sound of --video is used, or silence")  # fmt: skip
    add("--video", type=Path, metavar="FILE", help="what the user shows: a video or a picture of any size and rate, "
        "cropped around its centre to the model's shape; without it: grey")  # fmt: skip
    add("--loop-video", action="store_true", help="start a video that is too short again instead of holding its last "
        "picture")  # fmt: skip
    add("--text", type=words, action="append", default=[], metavar="TEXT", help="typed at the start; repeatable")
    add("--text-at", type=words, action="append", nargs=2, default=[], metavar=("SECONDS", "TEXT"), help="typed later; "
        "repeatable")  # fmt: skip
    add("--tail", type=seconds, default=2.0, metavar="S", help="seconds of silence after the user's last word (default "
        "%(default)g)")  # fmt: skip
    add("--seconds", type=seconds, metavar="S", help="stop after this long")
    agent = talk.add_argument_group("the agent (what is not given is the server's choice)")
    add_agent(agent)
    agent.add_argument("--picture", type=Path, metavar="FILE", help="its face, for a model that takes one: becomes "
        "what it looked like before the conversation")  # fmt: skip
    agent.add_argument("--voice", type=Path, metavar="FILE", help="its voice, likewise: the first 2 s from where "
        "somebody speaks")  # fmt: skip
    agent.add_argument("--seed", type=seed, metavar="N", help="of the noise; same seed and input, same answer")
    agent.add_argument("--session", type=_session, metavar="ID", help="its name, a number or a word (default: random)")
    add = talk.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="where the three files go")
    add("--no-reconnect", action="store_true", help="a connection that is lost ends the conversation; else it is "
        "dialled again, and the conversation goes on with what is said then")  # fmt: skip
    add("--weights", type=words, metavar="WORD", help="for the report, where the server does not say what it serves")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status."""
    args = parser().parse_args(arguments)
    console = Console(stderr=True)
    commands = {"converse": lambda: _converse(args, console), "info": lambda: _info(args)}
    return execute(commands.get(args.command) or (lambda: loadtest.execute(args, console)), console)


def _converse(args: argparse.Namespace, console: Console) -> int:
    options = agent_options(args)
    if args.seed is not None:
        options["seed"] = args.seed
    typed = [TypedText(0.0, text) for text in args.text]
    typed += [TypedText(_when(at, text), text) for at, text in args.text_at]
    request = Request(
        args.url,
        args.model,
        options,
        args.session,
        args.timeout,
        not args.no_reconnect,
        read_tls(args),
        args.picture,
        args.voice,
    )
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


def _when(at: str, text: str) -> float:
    try:
        return seconds(at)
    except argparse.ArgumentTypeError:
        raise MediaError(f"--text-at: expected seconds and a text, got {at!r} {text!r}") from None


def _info(args: argparse.Namespace) -> int:
    async def ask() -> dict[str, Any]:
        connecting = DuplexClient.connect(args.url, model=args.model, timeout=args.timeout, tls=read_tls(args))
        async with await connecting as client:
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
