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
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.live import Request, hold, summarise, write_files
from client.media.source import TypedText, UserSource, read_source
from client.report.captions import printable
from client.stream.errors import DuplexError, MediaError
from client.stream.units import UnitShape
from client.talk import script as script_module
from client.talk.script import Script, Verdicts, judge

MEDIA = Path(__file__).parent / "demo_media"
CREDITS = {
    "speech": "LibriVox, Sense and Sensibility (public domain), taken from the PocketSphinx 5.1.1 test data",
    "face": "Intel sample-videos, head-pose-face-detection-male (CC BY 4.0), cropped and repeated",
}
# Typed in the reader's pauses: the shipped model knows digits, not Jane Austen. It still speaks when he goes on.
PROMPTS = {"en": "english", "de": "german"}  # of the script's language
TYPED = (TypedText(4.0, "7"), TypedText(11.7, "3"), TypedText(20.9, "nine"), TypedText(26.2, "1"))
START_SECONDS, STOP_SECONDS = 120.0, 30.0


class ServerFailed(Exception):
    """The demo's own server did not come up; the message ends with the end of its log."""


@contextlib.contextmanager
def server(engines: Path, run: Path, *arguments: str) -> Iterator[dict[str, Any]]:
    """A server for as long as the block lasts. Yields its server.json (`grpc`: host:port, `weights`, ...).

    run: directory of this server run; takes server.json, server.log and launch.log.  arguments: more for the launcher.
    """
    run.mkdir(parents=True, exist_ok=True)
    log = run / "launch.log"
    command = [sys.executable, "-m", "triton_models.launch", "--engines", str(engines), "--runs", str(run.parent)]
    command += ["--name", run.name, *arguments]
    for port in ("grpc", "http", "metrics", "health"):
        command += [f"--{port}-port", "0"]
    with log.open("w") as out:
        # A session of its own: Ctrl-C in the terminal ends the conversation first, and that the server in good order.
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield _wait(process, run / "server.json", log)
    finally:
        _stop(process)


def _wait(process: subprocess.Popen[bytes], state: Path, log: Path) -> dict[str, Any]:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise ServerFailed(f"the server ended with exit code {process.returncode}\n{_tail(log)}")
        with contextlib.suppress(FileNotFoundError, ValueError):
            facts = json.loads(state.read_text())
            # The file of an earlier run may still be there.
            if facts.get("state") == "ready" and facts.get("launcher_pid") == process.pid:
                return facts
        time.sleep(0.1)
    raise ServerFailed(f"the server was not ready within {START_SECONDS:g} s\n{_tail(log)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM drains, a second one does not wait for that, SIGKILL is for what hangs."""
    for end in (process.terminate, process.terminate, process.kill):
        if process.poll() is None:
            end()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)


def _tail(log: Path, lines: int = 4) -> str:
    last = (line[:200] for line in log.read_text(errors="replace").splitlines()[-lines:])
    return "\n".join(("the last lines of " + str(log) + ":", *last))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 a conversation was held to its end, 1 it failed on the way or was late, 2 it could not start.

    What the model gets wrong is reported and is no failure.
    """
    parser = argparse.ArgumentParser(prog="python -m client.demo", description=__doc__)
    parser.add_argument("--engines", type=Path, default=Path("build/engines/tiny"), metavar="DIR", help="what the "
                        "demo's own server serves (default %(default)s)")  # fmt: skip
    parser.add_argument("--url", metavar="HOST:PORT", help="talk to this server and start none")
    parser.add_argument("--out", type=Path, default=Path("build/runs/demo"), metavar="DIR", help="where the files go "
                        "(default %(default)s)")  # fmt: skip
    parser.add_argument("--media", choices=("scripted", "recorded"), default="scripted", help="the user: see above")
    parser.add_argument("--script", type=Path, default=Path("build/media"), metavar="DIR", help="the script's folder "
                        "(default %(default)s)")  # fmt: skip
    parser.add_argument("--on-time", type=float, default=0.95, metavar="SHARE", help="of the units, below which the "
                        "demo has failed, whatever the model said (default %(default)s)")  # fmt: skip
    parser.add_argument("--seconds", type=float, metavar="S", help="stop after this long (default: all, half a minute)")
    args = parser.parse_args(arguments)
    console = Console(stderr=True)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)  # the server below must not outlive the demo
    try:
        if args.url:
            return _talk(args.url, args, console)
        console.print(f"starting a server with {escape(str(args.engines))} ...", style="dim", soft_wrap=True)
        with server(args.engines, args.out / "server") as facts:
            return _talk(facts["grpc"], args, console)
    except (MediaError, DuplexError, ServerFailed) as error:
        console.print(f"[red]{escape(str(error))}[/red]", soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("interrupted")
        return 130


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
    for column in ("at", "user", "due", "agent", "answer", "silent"):
        table.add_column(column, justify="right" if column in ("at", "answer", "silent") else "left")
    for row, item in zip(judged.summary()["events"], judged.items, strict=True):
        times = [f"{ms:.0f} ms" if ms is not None else "" for ms in (row["response_ms"], row["stop_ms"])]
        given = escape(printable(row["given"])) or ("kept" if item.right else "not kept")
        style = None if item.right else "red"
        table.add_row(f"{row['at_seconds']:.1f} s", row["user"], row["expected"], given, *times, style=style)
    console.print(table)
    console.print(f"the model got {judged.right} of {len(judged.items)} right")


def _interrupted(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
