"""What the loop holds of one session and of one unit on its way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ..echo_canceller import EchoCanceller
from ..messages import CloseJob, Float32, OpenJob, SessionError
from .contract import Call, Reply, UnitRequest
from .output import Output
from .table import Accepted, Session
from .tracing import Span

OPEN_SECONDS = 60.0  # longer than other calls an opening may take: a long prompt is read piece by piece, behind others

Stage = Literal["thought", "solved", "answered"]
Farewell = tuple[Reply, SessionError | None]  # the last that a reply says


class Over(Exception):
    """The session has ended under its unit: nobody waits for the rest."""


@dataclass(eq=False)
class Conversation:
    """One session, beside its place in the session table. `epoch` is the one it was opened with in both models.

    How far it has come is told by units: e of unit `thought` is used up, so the next may be perceived; z of unit
    `solved` is here, so the next may be thought; unit `answered` is on its way to the client. `changed` is notified of
    each, and of the end (`over`). Its lock is that of all sessions: it guards everything here.
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
    calls: dict[object, tuple[float, str]] = field(default_factory=dict)  # in the models now: since when (an opening:
    # from when on its time counts), what
    unanswered: dict[int, Reply] = field(default_factory=dict)  # by unit; at most max_in_flight
    output: Output = field(default_factory=Output)
    canceller: EchoCanceller | None = None
    typed: int = 0  # text tokens that wait in the thinker for later units
    failure: SessionError | None = None

    def without_echo(self, unit: int, pcm: Float32) -> Float32:
        """The user's sound [N] of `unit` without the agent's that came back. Call it once a unit, in order."""
        if self.canceller is None:
            return pcm
        played = self.output.played_in(unit)
        return self.canceller.clean(pcm, np.zeros_like(pcm) if played is None else played)

    # -- take the lock -----------------------------------------------------------------------------------------
    def reach(self, **stages: Any) -> None:
        """The session has come so far: all fields change in one moment, or a unit could go on with half of them."""
        with self.changed:
            for stage, value in stages.items():
                setattr(self, stage, value)
            self.changed.notify_all()

    def reached(self, stage: Stage, unit: int) -> bool:
        with self.changed:
            return getattr(self, stage) >= unit

    def unless_over(self, function: Callable[..., Any], *args: Any) -> Any:
        """What `function` returns, which is quick, called before the session can end. Raises Over."""
        with self.changed:
            if self.over:
                raise Over
            return function(*args)

    def wait_for(self, stage: Stage, unit: int) -> None:
        """Until the session has come to `unit` in `stage`. Raises Over."""
        with self.changed:
            self.changed.wait_for(lambda: self.over or getattr(self, stage) >= unit)
            if self.over:
                raise Over

    def rest(self, seconds: float) -> None:
        """Waits for so long, or until the end. Raises Over."""
        with self.changed:
            if self.changed.wait_for(lambda: self.over, seconds):
                raise Over

    def call(self, call: Call, job: object) -> Any:
        """The result of `call(job)`, or what it raises. Raises Over if the session has ended, before or meanwhile; only
        a CloseJob is for a session that has."""
        token, closing = object(), isinstance(job, CloseJob)
        with self.changed:
            if self.over and not closing:
                raise Over
            begun = time.monotonic() + (OPEN_SECONDS if isinstance(job, OpenJob) else 0.0)
            self.calls[token] = begun, type(job).__name__.removesuffix("Job").lower()
        try:
            result = call(job)
        finally:
            with self.changed:
                del self.calls[token]
                if over := self.over:
                    self.changed.notify_all()
        if over and not closing:
            raise Over
        return result

    # -- hold the lock -----------------------------------------------------------------------------------------
    def replies(self) -> list[Reply]:
        """Everybody who waits for something."""
        waiting = list(self.unanswered.values())
        return waiting if self.held is None or self.held in waiting else [*waiting, self.held]

    def dismiss(self, error: SessionError | None) -> list[Farewell]:
        """Lets go of all replies, and says what they are to be told: unanswered units `error`; if there are none, the
        held-open stream."""
        told = list(self.unanswered.values()) or self.replies()
        farewells: list[Farewell] = [(reply, error if reply in told else None) for reply in self.replies()]
        self.unanswered.clear()
        self.held = None
        return farewells


@dataclass(eq=False)
class UnitWork:
    """One accepted unit on its way through the stages.

    arrival_ns: when the unit came; of one that came ahead of its time (`Accepted.due_ns`), when it was due.
    """

    talk: Conversation
    accepted: Accepted
    request: UnitRequest
    text: str
    arrival_ns: int
    think_ns: int = 0  # when its think call was made
    interrupt: bool = False
    spans: list[Span] = field(default_factory=list)  # of its calls, if they are traced
