"""All sessions of one server: how units arrive, how sessions end, and the watch over both. `loop.py` is a unit's way.

Every request that arrives gets exactly one response or one error, and its stream is finalised, whatever happens
(`_release` is the one way out of a session). A request that is refused changes nothing.

One lock guards all sessions. It is never held over a call, a response or the tokenizer: what is to be said when it is
taken is said when it is given back (`_locked`).

No Triton here: the caller injects `call_thinker` and `call_performer`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from engine_builder.config import ModelConfig

from .. import validate
from ..budget.admission import Admission, Room
from ..echo_canceller import EchoCanceller
from ..messages import MAX_QUEUED_TEXT, CloseJob, SessionError
from .contract import Call, Reply, UnitRequest, UnitResponse
from .conversation import Conversation, Farewell, UnitWork
from .guard import Guard, GuardPost, GuardSettings
from .loop import UnitLoop
from .meter import DuplexMeter
from .options import OptionLimits, SessionOptions, interrupts
from .table import SECOND_NS, Accepted, Session, SessionTable
from .tracing import Tracer

if TYPE_CHECKING:  # what it needs takes a tenth of a start, and only a fleet needs it
    from .home import Home

STALL_SECONDS = 10.0  # a call that takes longer will not come back: its process died under it, or hangs
MAX_READING = 8192  # prompt tokens of sessions that are opening; one prompt may be longer, while nobody else reads

_log = logging.getLogger(__name__)


class Duplex:
    """Every method may be called from any thread.

    call_thinker, call_performer   run a job in that model
    count_tokens                   how many tokens a typed text is
    """

    def __init__(
        self,
        config: ModelConfig,
        call_thinker: Call,
        call_performer: Call,
        count_tokens: Callable[[str], int],
        *,
        limits: OptionLimits | None = None,
        admission: Admission | None = None,
        degrade: bool = True,
        stall_seconds: float = STALL_SECONDS,
        clock: Callable[[], int] = time.monotonic_ns,
        tracer: Tracer | None = None,
        guard: tuple[Guard, GuardSettings] | None = None,
        home: Home | None = None,
        **table: Any,
    ) -> None:
        """limits: of what a client may ask for
        admission: the books of promised time and pages; None admits up to `max_sessions` unseen
        degrade: late units are shortened (`output.py`)
        guard: looks at what the agent says before it leaves (`guard.py`)
        home: signs where sessions are at home; None: there is one server
        table: arguments of `SessionTable` but `release` and `admit`
        """
        self.table = SessionTable(release=self._release, admit=self._admit, **table)
        self.units = 0  # answered
        self.meter = DuplexMeter()
        self._config, self._limits = config, limits or OptionLimits()
        self._call_thinker, self._call_performer = call_thinker, call_performer
        self._count_tokens, self._admission = count_tokens, admission
        self._stall_seconds, self._clock, self._tracer = stall_seconds, clock, tracer
        self._home = home
        self._lock = threading.Lock()
        self._conversations: dict[str, Conversation] = {}
        self._freeing: set[Conversation] = set()  # that ended and still hold something in the models
        self._farewells: list[Farewell] = []
        self._leaves_ns: int | None = None  # while draining: when what is still open is ended
        self._guard = None if guard is None else GuardPost(*guard, self.meter.metrics)
        self._loop = UnitLoop(
            call_thinker,
            call_performer,
            self._answer,
            self._fail,
            threads=self.table.max_sessions * (self.table.max_in_flight + 1),  # all units under way, and the closes
            degrade=degrade,
            traced=tracer is not None,
            clock=clock,
            guard=self._guard,
        )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Whoever gives the lock back says what was to be said."""
        farewells: list[Farewell] = []
        try:
            with self._lock:
                try:
                    yield
                finally:
                    farewells, self._farewells = self._farewells, []
        finally:
            for reply, error in farewells:
                if error is not None:
                    reply.fail(error)
                reply.finish()

    # -- arrivals ----------------------------------------------------------------------------------------------
    def serve(self, request: UnitRequest, reply: Reply) -> None:
        """Takes one request; its answer goes to `reply` later. Call it in the order of arrival. Never raises."""
        arrival = self._clock()
        if request.start and reply.cancelled():  # a storm of starts that were given up or cut off costs nobody a unit
            reply.finish()
            return
        try:
            text, start, interrupt = self._read(request)
            tokens = self._tokens(text)
            with self._locked():
                self._check_room(request, tokens, interrupt)
                self._check_home(request, start)
                accepted = self.table.accept(
                    request.key, request.unit, start=start, end=request.end, interrupt=interrupt, now_ns=arrival
                )
                talk = self._conversation(accepted, reply)
                self.meter.accepted(accepted, arrival)
                talk.unanswered[accepted.unit] = reply
                talk.typed = max(0, (0 if interrupt else talk.typed) + tokens - self._config.language.text_tokens)
                self._keep_promise(talk, accepted.unit)
        except Exception as error:
            self._refuse(request, reply, error)
            return
        self._loop.start(UnitWork(talk, accepted, request, text, accepted.due_ns, interrupt=interrupt))

    def _read(self, request: UnitRequest) -> tuple[str, SessionOptions | None, bool]:
        """The text of a request, the options if it starts a session, and whether it interrupts. Refuses bad input."""
        try:
            validate.pcm(request.pcm, self._config)
            validate.frames(request.frames, self._config)
            text = validate.text(request.text, self._limits.text_bytes)
        except ValueError as error:
            raise SessionError("INVALID_ARGUMENT", str(error)) from None
        if not request.start:
            return text, None, interrupts(request.options, self._limits)
        start = SessionOptions.parse(request.options, self._limits)
        tokens = self._tokens(start.prompt) + start.persona.units * self._config.latent_tokens
        return text, replace(start, prompt_tokens=tokens), False

    def _tokens(self, text: str) -> int:
        return self._count_tokens(text) if text else 0

    def _check_room(self, request: UnitRequest, tokens: int, interrupt: bool) -> None:
        session = self.table.get(request.key)
        waiting = self._conversations[session.name].typed if session is not None and not interrupt else 0
        room = MAX_QUEUED_TEXT - waiting
        if tokens > room:
            raise SessionError(
                "INVALID_ARGUMENT", f"text: expected at most {room} more tokens ({waiting} wait), got {tokens}"
            )

    def _check_home(self, request: UnitRequest, start: SessionOptions | None) -> None:
        """In a fleet, whoever takes a session up again shows its token. Raises SessionError."""
        if self._home is None or start is None or not start.resume:
            return
        if start.home or self.table.get(request.key) is not None:
            self._home.check(start.home, request.key)

    def _admit(self, session: Session) -> None:
        """Books a new session in, before it exists. Raises SessionError RESOURCE_EXHAUSTED with the figures."""
        options = session.options
        reading = sum(t.session.options.prompt_tokens for t in self._conversations.values() if t.thought < 0)
        if reading and reading + options.prompt_tokens > MAX_READING:
            raise SessionError(
                "RESOURCE_EXHAUSTED",
                f"options.prompt: {reading} tokens of others are being read, expected at most {MAX_READING} with the "
                f"{options.prompt_tokens} of this one; try again in some seconds",
            )
        if self._admission is not None:
            self._admission.admit(session.name, options.retention, options.prompt_tokens, options.solver_steps)

    def _conversation(self, accepted: Accepted, reply: Reply) -> Conversation:
        session = accepted.session
        held = reply if session.options.hold_open else None
        if accepted.started:
            changed = threading.Condition(self._lock)
            talk = Conversation(session, accepted.epoch, held, changed)
            if session.options.echo_canceller:
                talk.canceller = EchoCanceller(self._config.audio.unit_samples)
            self._conversations[session.name] = talk
            return talk
        talk = self._conversations[session.name]
        if accepted.resumed:
            self.meter.lost(len(talk.unanswered))
            self._farewells += talk.dismiss(
                SessionError("ABORTED", f"session {session.key!r} was resumed on another stream")
            )
            talk.held = held
        return talk

    def _keep_promise(self, talk: Conversation, unit: int) -> None:
        """Ends a session whose promised time is over, before its history breaks a deadline."""
        ticket = self._admission.ticket(talk.session.name) if self._admission is not None else None
        if ticket is None:
            return
        try:
            ticket.check(unit)
        except SessionError as error:
            self._end(talk, error)

    def _refuse(self, request: UnitRequest, reply: Reply, error: Exception) -> None:
        if not isinstance(error, SessionError):
            _log.error("a request of session %r failed", request.key, exc_info=error)
            error = SessionError("INTERNAL", f"{type(error).__name__}: {error}")
        reply.fail(error)
        reply.finish()
        self.meter.refused(error.code, start=request.start)

    # -- answers -----------------------------------------------------------------------------------------------
    def _answer(self, work: UnitWork, response: UnitResponse) -> None:
        talk, session, unit = work.talk, work.talk.session, work.accepted.unit
        with self._lock:
            reply = talk.unanswered.pop(unit, None)
            fresh = self.table.fence(session, work.accepted.epoch)
            self.table.leave(session, unit)
            response.info.update(self._lasting(session, unit))
            if unit == 0 and session.options.resume and self._home is not None:
                response.info["home"] = self._home.token(session.key)
        if reply is not None:
            reply.send(response if fresh else talk.output.blank(response))
        sent = self._clock()
        with self._locked():
            talk.answered = unit
            talk.changed.notify_all()
            if reply is not None:
                self.units += 1
                self.meter.answered(work.accepted, response.info, work.arrival_ns, sent)
                if reply is not talk.held:
                    self._farewells.append((reply, None))
            self.table.retire(session, unit, sent)
        if reply is not None and self._tracer is not None:
            self._tracer.answered(session.name, unit, response.info, work.arrival_ns, sent, work.spans)

    def _lasting(self, session: Session, unit: int) -> dict[str, Any]:
        """What the client of a session that cannot go on for ever is told."""
        if self._leaves_ns is not None:
            left = max(0.0, (self._leaves_ns - self._clock()) / SECOND_NS)
            return {"leaves_seconds": round(left, 1), "notice": f"this server is going away: {left:.0f} s are left"}
        ticket = self._admission.ticket(session.name) if self._admission is not None else None
        if ticket is None or ticket.units is None:
            return {}
        notice = ticket.notice(unit)
        return {"lasts_seconds": ticket.seconds, **({"notice": notice} if notice is not None else {})}

    # -- ends --------------------------------------------------------------------------------------------------
    def _fail(self, talk: Conversation, error: SessionError) -> None:
        with self._locked():
            self._end(talk, error)

    def _end(self, talk: Conversation, error: SessionError) -> None:
        # A copy: what was raised holds the frames that it came through, and they hold the session until the garbage
        # collector looks, which it seldom does.
        talk.failure = talk.failure or SessionError(error.code, error.message)
        self.table.end(talk.session, str(error))

    def _release(self, session: Session, reason: str) -> None:
        """The one way out: called once per session by the table. Tells the client and frees everything."""
        talk = self._conversations.pop(session.name)
        error = talk.failure
        ending = "failed" if error else "completed" if reason == "completed" else "abandoned"
        self.meter.ended(session.name, ending, len(talk.unanswered))
        if error is None and reason != "completed":
            code = "UNAVAILABLE" if self.table.closing else "ABORTED"
            error = SessionError(code, f"session {session.key!r} has ended: {reason}")
        talk.over = True
        talk.changed.notify_all()
        self._farewells += talk.dismiss(error)
        self._freeing.add(talk)
        if self._guard is not None:
            self._guard.forget(session.name)
        self._loop.run(self._free, talk)

    def _free(self, talk: Conversation) -> None:
        """Closes the session in both models: in the performer first, for it still reads the thinker's pages."""
        try:
            self._close(talk, self._call_performer)
            self._close(talk, self._call_thinker)
        finally:
            with self._lock:
                self._freeing.discard(talk)
                if self._admission is not None:
                    self._admission.release(talk.session.name)

    def _close(self, talk: Conversation, call: Call) -> None:
        """Closes the session in one model, and waits for what is under way: it comes back before its pages are given
        to somebody else. A job that the close has overtaken is refused there."""
        try:
            talk.call(call, CloseJob(talk.session.name, talk.epoch))
        except Exception as error:
            _log.warning("closing session %r: %s", talk.session.key, error)
        with self._lock:
            talk.changed.wait_for(lambda: not talk.calls, self._stall_seconds)

    # -- the watch ---------------------------------------------------------------------------------------------
    def poll(self) -> None:
        """One round of the watch: clients that have gone and sessions that are idle, for Triton reports neither, and
        calls that do not come back."""
        with self._lock:
            streams = [(talk, talk.replies()) for talk in self._conversations.values()]
        # Asking costs a message to the server, and units go on meanwhile.
        gone = [(talk, [reply for reply in replies if reply.cancelled()]) for talk, replies in streams]
        with self._locked():
            for talk, lost in gone:
                if talk.over or not any(reply in lost for reply in talk.replies()):  # resumed on another one meanwhile
                    continue
                if self.table.detach(talk.session, self._clock()):
                    self.meter.lost(len(talk.unanswered))
                    self._farewells += talk.dismiss(None)
            since = time.monotonic() - self._stall_seconds
            for talk in list(self._conversations.values()):
                for begun, what in list(talk.calls.values()):
                    if begun < since:
                        error = f"{what}: no result in {self._stall_seconds:g} s"
                        self._end(talk, SessionError("UNAVAILABLE", error))
            if self._leaves_ns is not None and not self.table.closing and self._clock() >= self._leaves_ns:
                self.table.close()
            self.table.expire(self._clock())

    def drain(self, seconds: float = 0.0) -> None:
        """Takes no new sessions. Those that are open may go on for so long, and hear of it with each answer; then they
        end with their last answer, or at once if none is owed."""
        with self._locked():
            self.table.draining = True
            self._leaves_ns = self._clock() + round(seconds * SECOND_NS)
            if not seconds:
                self.table.close()

    def abandon(self, reason: str) -> None:
        """Ends every session now with UNAVAILABLE, as when the thinker is dead and no unit can be finished."""
        with self._locked():
            self.table.closing = True
            for talk in list(self._conversations.values()):
                self._end(talk, SessionError("UNAVAILABLE", reason))

    def stop(self) -> None:
        """Takes no more work."""
        self._loop.stop()
        if self._guard is not None:
            self._guard.stop()

    def _room(self) -> Room:
        """The one truth about room, from the books of admission."""
        table, books = self.table, self._admission
        held, freeing = table.held, len(self._freeing)
        capacity, free = table.max_sessions, table.max_sessions - len(table) - freeing
        leaving = table.draining or table.closing
        if books is not None:
            capacity, free = min(capacity, books.capacity), min(free, books.room)
        return Room(
            capacity=capacity,
            admitted=len(table) - held,
            reserved=held + freeing,
            free=0 if leaving else max(0, free),
            draining=leaving,
        )

    def status(self) -> dict[str, Any]:
        """Sessions now, counters so far, and for how long the oldest call has been under way."""
        with self._lock:
            talks = [*self._conversations.values(), *self._freeing]
            oldest = min((begun for talk in talks for begun, _ in talk.calls.values()), default=None)
            return {
                "sessions": len(self.table),
                "room": self._room(),
                "freeing": len(self._freeing),
                "units": self.units,
                "dropped": self.table.dropped,
                **self.meter.metrics.snapshot(),
                "oldest_call_s": 0.0 if oldest is None else round(max(0.0, time.monotonic() - oldest), 3),
            }
