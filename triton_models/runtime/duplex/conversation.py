"""What the loop of `duplex.py` holds: a request, its answer, the way back to the client, one conversation's state."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..messages import Float32, SessionError, ThinkResult, UInt8
from .output import Output
from .table import Accepted, Key, Session


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
    """The way back to the client of one request. From any thread; nothing may raise; after `finish` all do nothing."""

    def prepare(self, unit: int, state: str, text: str) -> None:
        """What the answer will say; it may be packed while sound and pictures are made."""
        ...

    def send(self, response: UnitResponse) -> None: ...

    def fail(self, error: SessionError) -> None: ...

    def finish(self) -> None:
        """Finalises the request: the client is told that nothing more will come for it."""
        ...

    def cancelled(self) -> bool:
        """True once the client has gone away."""
        ...


@dataclass(eq=False)
class Conversation:
    """One session, beside its place in the session table. `epoch` is the one it was opened with in both models.

    How far it has come is told by units: e of unit `thought` is used up, so the next may be perceived; z of unit
    `solved` is here, so the next may be thought; unit `answered` is on its way to the client. `changed` is notified of
    each, and of the end (`over`); its lock is that of the whole loop.
    """

    session: Session
    epoch: int
    held: Reply | None  # stays open until the session ends (`hold_open`)
    changed: threading.Condition
    thought: int = -1
    solved: int = -1
    answered: int = -1
    z: tuple[Float32, Float32] | None = None  # latents of unit `solved`: video [n_v, c_v], audio [n_a, c_a]
    over: bool = False  # released: what is still under way is for nobody
    calls: int = 0  # that are in the thinker or the performer
    unanswered: dict[int, Reply] = field(default_factory=dict)  # by unit; at most max_in_flight
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


@dataclass(eq=False)
class Turn:
    """One accepted unit on its way through the stages. Each thread of it writes what it brought about."""

    talk: Conversation
    accepted: Accepted
    request: UnitRequest
    text: str
    arrival_ns: int
    think_ns: int = 0  # when its think call was made
    thought: ThinkResult | None = None
