"""A conversation in a terminal: progress while it runs, Ctrl-C that keeps what was said, files at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID

from .media.persona import with_references
from .media.source import UserSource
from .report import figures, film, timeline
from .report.captions import printable
from .stream import DuplexClient, DuplexError, MediaError, Tls, UnitShape
from .talk.conversation import Conversation, UnitRecord, converse
from .talk.script import Verdicts
from .terminal import interrupt, progress

SAID_LINES = 16  # of a conversation, at its end
FILES = ("conversation.mp4", "timeline.png", "report.json")


@dataclass(frozen=True)
class Request:
    """What to talk with, and how."""

    url: str
    model: str = "duplex"
    options: Mapping[str, Any] | None = None
    session_id: int | str | None = None
    timeout: float = 10.0
    reconnect: bool = True
    tls: Tls | None = None
    picture: Path | None = None  # of the agent
    voice: Path | None = None


async def hold(
    request: Request, read: Callable[[UnitShape], UserSource], folder: Path, console: Console
) -> Conversation:
    """Connects, reads the user's files at the model's sizes, and talks. The first Ctrl-C ends the conversation.

    Raises DuplexError when there is no server, MediaError for unusable files; what goes wrong later is in `errors`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    async with await DuplexClient.connect(
        request.url, model=request.model, timeout=request.timeout, tls=request.tls
    ) as client:
        source = await asyncio.to_thread(read, client.shape)
        options = with_references(request.options or {}, client.shape, request.picture, request.voice)
        for note in source.notes:
            console.print(f"[yellow]{escape(note)}[/yellow]", soft_wrap=True)
        stop = asyncio.Event()
        with interrupt(stop), progress(console) as bar:
            task = bar.add_task("talking", total=source.count, info="connecting")
            return await converse(
                client,
                source,
                folder,
                options=options,
                session_id=request.session_id,
                stop=stop,
                timeout=request.timeout,
                reconnect=request.reconnect,
                on_unit=_Ticker(bar, task),
                on_resume=lambda news: console.print(f"[yellow]{news}[/yellow]"),
            )


def write_files(
    talk: Conversation,
    folder: Path,
    console: Console,
    *,
    weights: str | None = None,
    media: dict[str, str] | None = None,
    judged: Verdicts | None = None,
) -> dict[str, Any]:
    """Writes report.json, timeline.png and conversation.mp4 into `folder`; returns the report.

    judged: what the agent made of a script, if the user followed one.
    """
    data = figures.build(talk, weights=weights, media=media)
    if judged is not None:
        data["script"] = judged.summary()
    figures.write(data, folder / "report.json")
    marks = judged.marks() if judged is not None else ()
    timeline.draw(talk, folder / "timeline.png", weights=data["weights"], marks=marks)
    if talk.units:
        with progress(console) as bar:
            task = bar.add_task("writing conversation.mp4", total=len(talk.units), info="")
            try:
                film.write_conversation(
                    talk,
                    folder / "conversation.mp4",
                    lambda done, n: bar.update(task, completed=done, total=n),
                    weights=data["weights"],
                )
            except MediaError as error:
                console.print(f"[red]{escape(str(error))}[/red]", soft_wrap=True)
                talk.errors.append(DuplexError("INTERNAL", str(error)))  # not whole: the exit status says so
    return data


def summarise(data: Mapping[str, Any], folder: Path, console: Console) -> None:
    """A few lines: was it on time, what was said, where the files are."""
    units, response = data["units"], data["ms"]["response"]
    share = data["on_time"]["share"]
    colour = "green" if share >= 0.99 else "yellow" if share >= 0.9 else "red"
    count = units["sent"] + sum(outage["skipped"] for outage in data["outages"])
    line = f"[bold {colour}]{share:.1%} of {count} units on time[/]"
    if response:
        line += f"   response p50 {response['p50']:.0f}  p95 {response['p95']:.0f}  p99 {response['p99']:.0f} ms"
    console.print(line)
    console.print(f"weights: {escape(data['weights'])}", style="dim")
    said = [(row["who"], printable(row["text"])) for row in data["dialogue"] if any(map(str.isalnum, row["text"]))]
    for who, text in said[:SAID_LINES]:
        console.print(f"  [dim]{who:<6}[/dim] {escape(text[:160])}", soft_wrap=True)
    if len(said) > SAID_LINES:
        console.print(f"  ... {len(said) - SAID_LINES} more in report.json", style="dim")
    for error in data["errors"]:
        console.print(f"[red]{escape(error['code'])}: {escape(error['message'])}[/red]", soft_wrap=True)
    for name in FILES:
        if (folder / name).exists():
            console.print(f"  {escape(str(folder / name))}", soft_wrap=True)


class _Ticker:
    """Shows each response as it comes."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar = bar
        self._task = task
        self._on_time = 0
        self._count = 0

    def __call__(self, unit: UnitRecord) -> None:
        self._count += 1
        self._on_time += unit.on_time
        info = f"{printable(unit.state):<8} {unit.response_ms or 0:4.0f} ms  {self._on_time / self._count:6.1%} on time"
        self._bar.update(self._task, completed=unit.index + 1, info=info)
