"""`make demo`: a scripted user talks with a served model in real time; film, timeline and report are written.

The script (`--script DIR`, made by `make demo`) has spoken words, an interruption and coloured cards in front of a
recorded face, and says what is due; the report counts what the model got right. Without it, or with `--media recorded`,
the user is a recording of a man who reads from a novel, with a few digits typed in between.

Starts a server of its own (`python -m triton_models.launch`, as a process: the client imports nothing of it) and stops
it afterwards; with --url it talks to one that runs already.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .live import Request, hold, summarise, write_files
from .media.source import TypedText, UserSource, read_source
from .own_server import ServerFailed, server
from .report.captions import printable
from .stream import UnitShape
from .talk import script as script_module
from .talk.script import Script, Verdicts, judge
from .terminal import execute, seconds, share

MEDIA = Path(__file__).parent / "demo_media"
CREDITS = {
    "speech": "LibriVox, Sense and Sensibility (public domain), taken from the PocketSphinx 5.1.1 test data",
    "face": "Intel sample-videos, head-pose-face-detection-male (CC BY 4.0), cropped and repeated",
}
# Typed in the reader's pauses: the shipped model knows digits, not Jane Austen. It still speaks when he goes on.
PROMPTS = {"en": "english", "de": "german"}  # of the script's language
TYPED = (TypedText(4.0, "7"), TypedText(11.7, "3"), TypedText(20.9, "nine"), TypedText(26.2, "1"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 a conversation was held to its end, 1 it failed on the way or was late, 2 it could not start.

    What the model gets wrong is reported and is no failure.
    """
    parser = argparse.ArgumentParser(prog="python -m client.demo", description=__doc__)
    add = parser.add_argument
    add("--engines", type=Path, default=Path("build/engines/tiny"), metavar="DIR", help="what the demo's own server "
        "serves (default %(default)s)")  # fmt: skip
    add("--url", metavar="HOST:PORT", help="talk to this server and start none")
    add("--out", type=Path, default=Path("build/runs/demo"), metavar="DIR", help="where the files go (default "
        "%(default)s)")  # fmt: skip
    add("--media", choices=("scripted", "recorded"), default="scripted", help="the user: see above")
    add("--script", type=Path, default=Path("build/media"), metavar="DIR", help="the script's folder (default "
        "%(default)s)")  # fmt: skip
    add("--on-time", type=share, default=0.95, metavar="SHARE", help="of the units, below which the demo has failed, "
        "whatever the model said (default %(default)s)")  # fmt: skip
    add("--seconds", type=seconds, metavar="S", help="stop after this long (default: all, half a minute)")
    args = parser.parse_args(arguments)
    console = Console(stderr=True)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # the server below must not outlive the demo

    def run() -> int:
        if args.url:
            return _talk(args.url, args, console)
        console.print(f"starting a server with {escape(str(args.engines))} ...", style="dim", soft_wrap=True)
        with server(args.engines, args.out / "server", "--awake") as facts:
            return _talk(facts["grpc"], args, console)

    return execute(run, console, ServerFailed)


def _talk(url: str, args: argparse.Namespace, console: Console) -> int:
    script = _script(args, console)
    prompt = "english"
    if script is not None:
        prompt = PROMPTS.get(script.language, prompt)
        console.print(
            "half a minute of real time: a scripted user speaks, shows and types, the model answers", style="dim"
        )
    else:
        console.print("half a minute of real time: a recorded man speaks, the model answers", style="dim")

    def read(shape: UnitShape) -> UserSource:
        if script is not None:
            return script.source(shape, args.seconds)
        return read_source(
            shape,
            audio=MEDIA / "user_speech.flac",
            video=MEDIA / "user_face.mp4",
            typed=TYPED,
            loop=True,
            seconds=args.seconds,
        )

    talk = asyncio.run(hold(Request(url, options={"seed": 0, "prompt": prompt}), read, args.out, console))
    judged = judge(script, talk) if script is not None else None
    credits = CREDITS if script is None else {"speech": script.voices, "face": f"{CREDITS['face']}, cards drawn in"}
    with talk.recording:
        data = write_files(talk, args.out, console, media=credits, judged=judged)
    summarise(data, args.out, console)
    if judged is not None:
        _say(judged, console)
    if data["on_time"]["share"] < args.on_time:
        console.print(f"[red]fewer than {args.on_time:.0%} of the units were on time[/red]")
        return 1
    return 1 if talk.errors else 0


def _script(args: argparse.Namespace, console: Console) -> Script | None:
    """The scripted user, or None with a word why the recorded one takes his place. Raises MediaError for a bad one."""
    if args.media == "recorded":
        return None
    if not (args.script / script_module.NAME).exists():
        console.print(f"no script in {escape(str(args.script))} (`make demo` makes it, with espeak-ng): recorded user")
        return None
    return Script.read(args.script)


def _say(judged: Verdicts, console: Console) -> None:
    """What the user did, what the model made of it, and how fast."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("at", "user", "heard", "due", "agent", "answer", "silent"):
        table.add_column(column, justify="right" if column in ("at", "answer", "silent") else "left")
    for row, item in zip(judged.summary()["events"], judged.items, strict=True):
        times = [f"{ms:.0f} ms" if ms is not None else "" for ms in (row["response_ms"], row["stop_ms"])]
        given = escape(printable(row["given"])) or ("kept" if item.right else "not kept")
        style = None if item.right else "red"
        heard = escape(printable(row["heard"]))
        table.add_row(f"{row['at_seconds']:.1f} s", row["user"], heard, row["expected"], given, *times, style=style)
    console.print(table)
    console.print(f"the model got {judged.right} of {len(judged.items)} right")


if __name__ == "__main__":
    sys.exit(main())
