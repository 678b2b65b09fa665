"""What the loop of `duplex.py` holds: a request, its answer, the way back to the client, one conversation's state."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Protocol

from .messages import Float32, SessionError, UInt8
from .output import Output
from .session import Accepted, Key, Session


@dataclass(frozen=True)
class UnitRequest:
    """One request of the wire contract, its tensors not yet validated: pcm [N], frames [4, H, W, 3]."""

    key: Key
    start: bool
    end: bool
    unit: int
    pcm: Float32
    frames: UInt8
    text: bytes = b""
    options: bytes = b""


@dataclass(frozen=True)
class UnitResponse:
    """One response of the wire contract; `info` is what the client gets as JSON."""

    unit: int
    state: str
    text: str
    pcm: Float32
    frames: UInt8
    info: dict[str, Any]


class Reply(Protocol):
    """The way back to the client of one request. Nothing may raise; after `finish` all calls do nothing."""

    def send(self, response: UnitResponse) -> None: ...

    def fail(self, error: SessionError) -> None: ...

    def finish(self) -> None:
        """Finalises the request: the client is told that nothing more will come for it."""
        ...

    def cancelled(self) -> bool:
        """True once the client has gone away."""
        ...


@dataclass(eq=False)
class Stages:
    """How far a unit has come, for the unit behind it."""

    thought: asyncio.Event = field(default_factory=asyncio.Event)  # its e is used up: the next may be perceived
    rendered: asyncio.Event = field(default_factory=asyncio.Event)  # its z is in the thinker: the next may be thought

    @classmethod
    def over(cls) -> Stages:
        """What stands before unit 0."""
        stages = cls()
        stages.thought.set()
        stages.rendered.set()
        return stages


@dataclass(eq=False)
class Conversation:
    """One session, beside its place in the session table. `epoch` is the one it was opened with in both models."""

    session: Session
    epoch: int
    held: Reply | None  # stays open until the session ends (`hold_open`)
    newest: Stages = field(default_factory=Stages.over)
    unanswered: dict[int, Reply] = field(default_factory=dict)  # by unit; at most max_in_flight
    tasks: set[asyncio.Task[None]] = field(default_factory=set)  # of its units
    calls: set[asyncio.Future[Any]] = field(default_factory=set)  # that are in the thinker or the performer
    output: Output = field(default_factory=Output)
    typed: int = 0  # text tokens that wait in the thinker for later units
    failure: SessionError | None = None

    def replies(self) -> list[Reply]:
        """Everybody who waits for something."""
        waiting = list(self.unanswered.values())
        return waiting if self.held is None or self.held in waiting else [*waiting, self.held]

    def dismiss(self, error: SessionError | None) -> None:
        """Finalises all replies. Unanswered units get `error`; if there are none, the held-open stream does."""
        told = list(self.unanswered.values()) or self.replies()
        for reply in self.replies():
            if error is not None and reply in told:
                reply.fail(error)
            reply.finish()
        self.unanswered.clear()
        self.held = None


@dataclass(frozen=True, eq=False)
class Turn:
    """One accepted unit on its way through the stages. `before` are those of the unit before it."""

    talk: Conversation
    accepted: Accepted
    request: UnitRequest
    text: str
    arrival_ns: int
    before: Stages
    stages: Stages
