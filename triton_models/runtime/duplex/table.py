"""Who is talking: the session table of the `duplex` model.

Triton gives no callback when a client vanishes and its sequence batcher leaks state across sequences, so the table is
our own. It decides which request belongs to which session and unit, which output may still go out (`fence`), and it is
the only way out (`end`). It does no input or output and never reads a clock: `now_ns` comes from the caller.

    accept(start) --> open --accept(end)--> draining --last retire()--> ended
                       |  ^                                             ^
              detach() |  | accept(start, resume)                       |
                       v  |        cancel, error, expire(): end() ------+
                      detached
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from engine_builder.config import UNIT_MS

from ..messages import SessionError, full
from .contract import SessionKey
from .options import SessionOptions

State = Literal["open", "draining", "detached", "ended"]

SECOND_NS = 1_000_000_000
# A session keeps real time, or it takes what was promised to others. It may be AHEAD_UNITS early (a network that lets
# go, a client that starts with what it has), and a tenth faster for ever: no two clocks are equal.
AHEAD_UNITS = 8
PACE_NS = round(0.9 * UNIT_MS * 1_000_000)
MAX_KEY_BYTES = 256
REMEMBERED_ENDS = 256  # ended sessions whose reason a late request is told
RESUME_ANYWHERE = -1  # unit_index of a resuming client that cannot know which unit arrived last


@dataclass(eq=False)
class Session:
    """One conversation. `name` is unique per opening, so that late work of a reused id never meets the new session."""

    key: SessionKey
    name: str
    options: SessionOptions
    epoch: int
    seen_ns: int  # last accepted or finished unit, or the moment of the detachment
    state: State = "open"
    next_unit: int = 0
    paced_ns: int = 0  # when its next unit is due at that pace
    in_flight: set[int] = field(default_factory=set)
    leaving: set[int] = field(default_factory=set)  # of those: whose answer is being sent


@dataclass(frozen=True)
class Accepted:
    """A request that has its place: `unit` of `session`, to be answered under `epoch`."""

    session: Session
    unit: int
    epoch: int
    started: bool  # a new session: open it in the thinker first
    resumed: bool  # an old session on a new stream: finish the old stream
    due_ns: int  # not to be served before: now, or later if its session is ahead of real time


class SessionTable:
    """All sessions of one server.

    admit    called with a new session before it exists; raises SessionError to refuse it
    release  called exactly once per admitted session, with the reason, whatever the way out: frees pages, codec state,
             admission and the response stream. The session is already out of the table.
    ahead_units  how far a session may be ahead of real time before its units wait; None: for ever
    """

    def __init__(
        self,
        *,
        release: Callable[[Session, str], None],
        admit: Callable[[Session], None] | None = None,
        max_sessions: int = 1024,
        max_in_flight: int = 2,
        ahead_units: int | None = AHEAD_UNITS,
        idle_ns: int = 30 * SECOND_NS,
        grace_ns: int = 30 * SECOND_NS,
    ) -> None:
        for name, value in (("max_sessions", max_sessions), ("max_in_flight", max_in_flight)):
            if value < 1:
                raise ValueError(f"{name}: expected >= 1, got {value}")
        self.max_sessions, self.max_in_flight, self.ahead_units = max_sessions, max_in_flight, ahead_units
        self.idle_ns, self.grace_ns = idle_ns, grace_ns
        self.dropped = 0  # late outputs that the fence held back
        self.draining = False  # no new sessions; those that are open go on
        self.closing = False  # the server is shutting down
        self._release, self._admit = release, admit
        self._sessions: dict[SessionKey, Session] = {}
        self._ended: OrderedDict[SessionKey, str] = OrderedDict()
        self._epochs = 0  # one counter for all: an epoch is never used twice, not even by a reused id

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def sessions(self) -> list[Session]:
        return list(self._sessions.values())

    def get(self, key: SessionKey) -> Session | None:
        return self._sessions.get(key)

    # -- requests ----------------------------------------------------------------------------------------------
    def accept(
        self,
        key: SessionKey,
        unit: int,
        *,
        start: SessionOptions | None = None,
        end: bool = False,
        interrupt: bool = False,
        now_ns: int,
    ) -> Accepted:
        """Places one request; its tensors must have been validated before, for the unit clock moves on here.

        start: the options of a request that starts or resumes a session
        interrupt: whatever is on its way now will not be sent

        Raises SessionError; a refused request changes nothing. Call `retire` once the unit is answered or given up.
        """
        _check_key(key)
        if not isinstance(unit, int) or isinstance(unit, bool):
            raise SessionError("INVALID_ARGUMENT", f"unit_index: expected an integer, got {unit!r}")
        if self.closing:
            raise SessionError("UNAVAILABLE", f"session {key!r}: the server is shutting down and takes no more units")
        if start is not None:
            return self._start(key, unit, end, start, now_ns)
        session = self._sessions.get(key)
        if session is None:
            reason = self._ended.get(key)
            raise SessionError(
                "NOT_FOUND",
                f"sequence_id: session {key!r} "
                + (f"has ended ({reason})" if reason else "is unknown; expected sequence_start on its first request"),
            )
        if session.state == "detached":
            raise SessionError(
                "ABORTED",
                f'sequence_id: session {key!r} lost its stream; resume it with sequence_start and {{"resume": true}}',
            )
        accepted = self._place(session, unit, end, now_ns)
        return replace(accepted, epoch=self.interrupt(session)) if interrupt else accepted

    def leave(self, session: Session, unit: int) -> None:
        """The unit's answer goes out now, so its client may send another one before `retire` is called."""
        session.leaving.add(unit)

    def retire(self, session: Session, unit: int, now_ns: int) -> None:
        """The unit was answered, dropped or failed. The last one of a draining session ends it."""
        session.in_flight.discard(unit)
        session.leaving.discard(unit)
        if session.state in ("open", "draining"):  # a detached session's grace time runs from its detachment
            session.seen_ns = now_ns
        if session.state == "draining" and not session.in_flight:
            self.end(session, "the server is shutting down" if self.closing else "completed")

    # -- epochs ------------------------------------------------------------------------------------------------
    def fence(self, session: Session, epoch: int) -> bool:
        """True if output made under `epoch` may go to the client. The one place where late output is dropped.

        It guards what is sent, never model state: the latents of a unit whose output is dropped are still history.
        """
        if session.epoch == epoch and session.state in ("open", "draining"):
            return True
        self.dropped += 1
        return False

    def interrupt(self, session: Session) -> int:
        """Raises the epoch: whatever is on its way now will not be sent. Returns the new epoch."""
        session.epoch = self._next_epoch()
        return session.epoch

    def detach(self, session: Session, now_ns: int) -> bool:
        """The client's stream is gone. True if the session waits to be resumed, False if it has ended instead."""
        if session.state == "open" and session.options.resume and not self.closing:
            session.state, session.seen_ns = "detached", now_ns
        elif session.state != "detached":
            self.end(session, "the client is gone")
        return session.state == "detached"

    # -- ways out ----------------------------------------------------------------------------------------------
    def end(self, session: Session, reason: str) -> None:
        """The one cleanup path. Does nothing if the session has ended."""
        if session.state == "ended":
            return
        session.state = "ended"
        del self._sessions[session.key]
        self._ended[session.key] = reason
        self._ended.move_to_end(session.key)
        while len(self._ended) > REMEMBERED_ENDS:
            self._ended.popitem(last=False)
        self._release(session, reason)

    def expire(self, now_ns: int) -> None:
        """Ends sessions that sent nothing for the idle time, or were not resumed within the grace time."""
        for session in self.sessions:
            detached = session.state == "detached"
            limit = self.grace_ns if detached else self.idle_ns
            if now_ns - session.seen_ns >= limit:
                self.end(session, f"{'not resumed within' if detached else 'idle for'} {limit / SECOND_NS:g} s")

    @property
    def held(self) -> int:
        """Sessions without a stream, which wait to be resumed."""
        return sum(session.state == "detached" for session in self._sessions.values())

    def close(self) -> None:
        """Shutdown: takes no more units; ends every session at once or, if it has units in flight, at the last one."""
        self.closing = True
        for session in self.sessions:
            if session.in_flight and session.state != "detached":
                session.state = "draining"
            else:
                self.end(session, "the server is shutting down")

    # -- inside ------------------------------------------------------------------------------------------------
    def _start(self, key: SessionKey, unit: int, end: bool, wanted: SessionOptions, now_ns: int) -> Accepted:
        session = self._sessions.get(key)
        if session is not None:
            # A client often reconnects before the server has noticed the loss, so an open session may be taken over.
            if session.state == "draining" or not (wanted.resume and session.options.resume):
                raise SessionError(
                    "ALREADY_EXISTS",
                    f"sequence_start: session {key!r} is {session.state} (next unit {session.next_unit}); "
                    'expected a new sequence_id, or {"resume": true} in the options of both starts',
                )
            kept = sorted(wanted.given - {"resume", "hold_open", "home"})
            if kept:
                raise SessionError(
                    "INVALID_ARGUMENT", f"options: a resumed session keeps its own; expected no {', '.join(kept)}"
                )
            accepted = self._place(session, session.next_unit if unit == RESUME_ANYWHERE else unit, end, now_ns)
            session.options = replace(session.options, hold_open=wanted.hold_open)
            session.state = "draining" if end else "open"
            return replace(accepted, epoch=self.interrupt(session), resumed=True)
        if unit != 0:
            if wanted.resume:
                reason = self._ended.get(key, "no such session")
                raise SessionError("NOT_FOUND", f"sequence_id: {key!r} cannot be resumed ({reason}); start at unit 0")
            raise SessionError("INVALID_ARGUMENT", f"unit_index: expected 0 with sequence_start, got {unit}")
        if self.draining:
            raise SessionError("UNAVAILABLE", "sessions: this server is going away; start again, on another one")
        if len(self._sessions) >= self.max_sessions:
            raise full(f"sessions: {len(self._sessions)} are open, this server takes {self.max_sessions}")
        epoch = self._next_epoch()
        name = f"{'int' if isinstance(key, int) else 'str'}:{key}#{epoch}"
        session = Session(key=key, name=name, options=wanted, epoch=epoch, seen_ns=now_ns)
        if self._admit is not None:
            self._admit(session)
        self._sessions[key] = session
        return replace(self._place(session, unit, end, now_ns), started=True)

    def _place(self, session: Session, unit: int, end: bool, now_ns: int) -> Accepted:
        if session.state == "draining":
            raise SessionError(
                "INVALID_ARGUMENT",
                f"unit_index: unit {unit} after sequence_end (unit {session.next_unit - 1} was the last)",
            )
        expected = session.next_unit
        if unit != expected:
            if unit > expected:
                skipped = f"unit {expected}" if unit == expected + 1 else f"units {expected} to {unit - 1}"
                what = f"{skipped} skipped"
            else:
                what = "repeated" if unit == expected - 1 else "the clock went back"
            raise SessionError("INVALID_ARGUMENT", f"unit_index: expected {expected}, got {unit} ({what})")
        unanswered = len(session.in_flight) - len(session.leaving)
        if unanswered >= self.max_in_flight:
            raise SessionError(
                "RESOURCE_EXHAUSTED",
                f"unit_index: {unanswered} units of session {session.key!r} are unanswered, expected at "
                f"most {self.max_in_flight} before unit {unit}; send it again after the next response",
            )
        session.next_unit = unit + 1
        session.in_flight.add(unit)
        session.seen_ns = now_ns
        if end:
            session.state = "draining"
        paced = max(session.paced_ns, now_ns)
        session.paced_ns = paced + PACE_NS
        due = now_ns if self.ahead_units is None else max(now_ns, paced - self.ahead_units * PACE_NS)
        return Accepted(session, unit, session.epoch, started=False, resumed=False, due_ns=due)

    def _next_epoch(self) -> int:
        self._epochs += 1
        return self._epochs


def _check_key(key: SessionKey) -> None:
    """Triton's "no sequence" is 0 or the empty string. 7 and "7" are two sessions."""
    if isinstance(key, str):
        size = len(key.encode(errors="surrogatepass"))
        if not 0 < size <= MAX_KEY_BYTES:
            raise SessionError("INVALID_ARGUMENT", f"sequence_id: expected 1 to {MAX_KEY_BYTES} bytes, got {size}")
    elif not isinstance(key, int) or isinstance(key, bool) or not 0 < key < 2**64:
        raise SessionError(
            "INVALID_ARGUMENT", f"sequence_id: expected an integer 1 to 2^64 - 1 or a non-empty string, got {key!r}"
        )
