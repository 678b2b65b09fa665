"""The thinker/performer loop: how a user unit becomes an agent unit, and how sessions share one server (DESIGN 4).

    request k --> accept --> perceive(k) --> think(k) --KV slice--> perform(k) --> z_k --> render(k) --> response k
                             '------ thinker -------'               '------- performer -------'
    request k+1 --> accept --> perceive(k+1), while k is performed and rendered --> think(k+1) takes z_k along

`Duplex._think` and `Duplex._perform` are that line; read them first. Both calls of a unit are made when its think
starts: the performer's waits there for the thinker, which hands the slice over without coming back here. Everything
else is about ends: every request that arrives gets exactly one response or one error, and its stream is finalised,
whatever happens (`_release` is the one way out of a session).

No Triton here: the caller injects `call_thinker` and `call_performer`, which take a job of `messages.py`, block, and
return its result or raise SessionError. A unit has a thread for each of its calls, and the performer's answers the
client, because every step from thread to thread costs a wake-up; one lock guards all sessions and is never held over a
call or a response.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from engine_builder.config import ModelConfig

from .. import validate
from ..budget.admission import Admission
from ..messages import (
    CloseJob,
    HandOver,
    OpenJob,
    PerceiveJob,
    PerformJob,
    PerformResult,
    SessionError,
    ThinkJob,
    ThinkResult,
)
from ..thinker.session import MAX_QUEUED_TEXT
from .calls import Call, Calls, Over
from .conversation import Conversation, Reply, Turn, UnitRequest, UnitResponse
from .crew import Crew
from .degradation import Measure
from .meter import UNIT_NS, DuplexMeter
from .table import Accepted, Session, SessionTable
from .tracing import Tracer

STALL_SECONDS = 10.0  # a call that takes longer will not come back: its process died under it, or hangs
SMOOTHING = 0.1  # weight of the newest measurement in the running estimates of what is still to come
# The performer's call waits for the thinker's, which the two would slow down on their way if they were made at once
# (0.3 ms on two cores). A think that is quicker than this hands over to a job that is still to come.
HEAD_START = 0.001
MAX_THREADS = 256  # units under way at once; more wait for a thread

_log = logging.getLogger(__name__)


class Duplex:
    """All sessions of one server. Every method may be called from any thread.

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
        admission: Admission | None = None,
        degrade: bool = True,
        serve_alone: bool = False,
        stall_seconds: float = STALL_SECONDS,
        clock: Callable[[], int] = time.monotonic_ns,
        tracer: Tracer | None = None,
        **table: Any,
    ) -> None:
        """admission: the books of promised time and pages; None admits up to `max_sessions` unseen
        degrade: late units are shortened (`degradation.py`)
        serve_alone: the thread that calls `serve` thinks a unit itself where it keeps nobody waiting: no thread has to
            wake up for it. Another session's first request then waits for one think at most.
        table: arguments of `SessionTable` but `release` and `admit`
        """
        self.table = SessionTable(release=self._release, admit=self._admit, **table)
        self.units = 0  # answered
        self.meter = DuplexMeter()
        self._config = config
        self._call_thinker, self._call_performer = call_thinker, call_performer
        self._count_tokens = count_tokens
        self._stall_seconds = stall_seconds
        self._clock, self._tracer = clock, tracer
        self._admission, self._degrade, self._serve_alone = admission, degrade, serve_alone
        self._lock = threading.RLock()
        # Apart: if units that wait for an earlier one had all the threads, that one could not go on.
        self._threads = Crew(MAX_THREADS, "think")
        self._performing = Crew(MAX_THREADS, "perform")
        self._conversations: dict[str, Conversation] = {}
        self._calls = Calls(self._lock, clock, tracer)
        self._freeing = 0  # sessions that ended and still hold something in the models
        # Running estimates, for deadlines: from the last solver step, and from the think call, to the response.
        self._after_solver_ns = self._after_think_ns = 0.0

    # -- one unit, from socket to socket -----------------------------------------------------------------------
    def serve(self, request: UnitRequest, reply: Reply) -> None:
        """Takes one request; its answer goes to `reply` later. Call it in the order of arrival. Never raises."""
        arrival = self._clock()
        with self._lock:
            try:
                self._keep_promise(request)
                text = self._check(request)
                accepted = self.table.accept(
                    request.key,
                    request.unit,
                    start=request.start,
                    end=request.end,
                    options=request.options,
                    now_ns=arrival,
                )
                talk = self._conversation(accepted, reply)
            except Exception as error:
                self._refuse(request, reply, error)
                return
            if accepted.started or accepted.resumed:
                self.meter.accepted(accepted, arrival)
            talk.unanswered[accepted.unit] = reply
            talk.typed = max(0, talk.typed + self._tokens(text) - self._config.language.text_tokens)
            alone = self._serve_alone and self._alone(accepted, talk)
        turn = Turn(talk, accepted, request, text, arrival)
        if alone:
            self._thread(self._think, turn)
        else:
            self._threads.submit(self._thread, self._think, turn)

    def _thread(self, stage: Callable[[Turn], None], turn: Turn) -> None:
        """One of the two threads of a unit. A failure ends its session."""
        talk, unit = turn.talk, turn.accepted.unit
        try:
            stage(turn)
        except Over:
            pass
        except SessionError as error:
            self._fail(talk, error)
        except Exception as error:
            _log.exception("unit %d of session %r failed", unit, talk.session.key)
            self._fail(talk, SessionError("INTERNAL", f"unit {unit}: {type(error).__name__}: {error}"))

    def _think(self, turn: Turn) -> None:
        """perceive and think, each as soon as the unit before allows it. `_perform` goes on with the unit."""
        talk, request = turn.talk, turn.request
        options, unit = talk.session.options, turn.accepted.unit
        name, epoch = talk.session.name, talk.epoch
        think, perform = self._call_thinker, self._call_performer

        if turn.accepted.started:
            retention = options.retention.to_json()
            self._calls.make(talk, think, OpenJob(name, epoch, options.prompt, options.seed, retention))

        self._await(talk, "thought", unit - 1)
        heard: PerceiveJob | None = PerceiveJob(name, epoch, unit, request.pcm, request.frames)
        if talk.solved < unit - 1:  # z of the unit before is still being made: perceive meanwhile
            self._calls.make(talk, think, heard)
            heard = None  # otherwise it goes along with the think job, which saves a call
            self._await(talk, "solved", unit - 1)

        turn.think_ns = self._clock()
        z_video, z_audio = talk.z or (None, None)
        latest = turn.arrival_ns + UNIT_NS - round(self._after_think_ns)
        thinking = ThinkJob(name, epoch, unit, turn.text, heard, z_video, z_audio, latest)
        self._performing.submit(self._thread, self._perform, turn)
        thought: ThinkResult = self._calls.make(talk, think, thinking)
        turn.thought = thought
        self._reach(talk, thought=unit)
        if (reply := talk.unanswered.get(unit)) is not None:
            reply.prepare(unit, thought.state, thought.text)
        if not thought.handed:
            handed = HandOver(name, epoch, unit, thought.seed, thought.origin, thought.history)
            self._calls.make(talk, perform, handed)

    def _perform(self, turn: Turn) -> None:
        """perform and render: the job waits in the performer for the thinker, and this thread for its result."""
        talk, unit = turn.talk, turn.accepted.unit
        due = turn.arrival_ns + UNIT_NS
        time.sleep(HEAD_START)
        with self._lock:
            if not (talk.over or turn.accepted.started or turn.accepted.resumed):
                self.meter.accepted(turn.accepted, turn.arrival_ns)
        steps, deadline = talk.session.options.solver_steps, due - round(self._after_solver_ns)
        solving = PerformJob(talk.session.name, talk.epoch, unit, seed=0, steps=steps, deadline_ns=deadline, origin=0)
        solved: PerformResult = self._calls.make(talk, self._call_performer, solving)
        self._await(talk, "thought", unit)
        if solved.pcm is None or solved.frames is None or turn.thought is None:
            raise SessionError("INTERNAL", f"unit {unit}: expected pcm and frames of the performer, got none")
        self._reach(talk, solved=unit, z=(solved.z_video, solved.z_audio))
        self._await(talk, "answered", unit - 1)

        now = self._clock()
        self._after_solver_ns += SMOOTHING * (now - solved.solved_ns - self._after_solver_ns)
        self._after_think_ns += SMOOTHING * (now - turn.think_ns - self._after_think_ns)
        late = due if self._degrade else now
        pcm, frames, measures = talk.output.shorten(solved.pcm, solved.frames, solved.steps, steps, now, late)
        info = self._info(turn, turn.thought, solved, measures, now)
        self._answer(turn, UnitResponse(unit, turn.thought.state, turn.thought.text, pcm, frames, info))

    def _info(
        self, turn: Turn, thought: ThinkResult, solved: PerformResult, measures: list[Measure], now: int
    ) -> dict[str, Any]:
        """What the client is told of a unit besides its media."""
        engines = {**thought.ms, "perform": solved.ms["perform"], "render": solved.ms["render"]}
        total = (now - turn.arrival_ns) / 1e6
        ms = {"queue": total - sum(engines.values()), **engines, "total": total}  # queue: all that was not engine time
        info: dict[str, Any] = {
            "ms": {stage: round(value, 3) for stage, value in ms.items()},
            "epoch": turn.accepted.epoch,
            "steps": solved.steps,
            "degradation": measures,
        }
        ticket = self._admission.ticket(turn.talk.session.name) if self._admission is not None else None
        if ticket is not None and ticket.units is not None:
            info["lasts_seconds"] = ticket.seconds
            if (notice := ticket.notice(turn.accepted.unit)) is not None:
                info["notice"] = notice
        return info

    def _answer(self, turn: Turn, response: UnitResponse) -> None:
        talk, session, unit = turn.talk, turn.talk.session, turn.accepted.unit
        with self._lock:
            reply = talk.unanswered.pop(unit, None)
            fresh = self.table.fence(session, turn.accepted.epoch)
            self.table.leave(session, unit)
        if reply is not None:
            reply.send(response if fresh else talk.output.blank(response))
        with self._lock:
            self._reach(talk, answered=unit)
            if reply is not None:
                self.units += 1
                sent = self._clock()
                self.meter.answered(turn.accepted, response.info, turn.arrival_ns, sent)
                if self._tracer:
                    self._tracer.answered(session.name, unit, response.info, turn.arrival_ns, sent)
                if reply is not talk.held:
                    reply.finish()
            self.table.finish(session, unit, self._clock())

    def _await(self, talk: Conversation, stage: str, unit: int) -> None:
        """Until the session has come to `unit` in `stage`. Raises Over."""
        with self._lock:
            while getattr(talk, stage) < unit and not talk.over:
                talk.changed.wait()
            if talk.over:
                raise Over

    def _reach(self, talk: Conversation, **stages: Any) -> None:
        with self._lock:
            for stage, value in stages.items():
                setattr(talk, stage, value)
            talk.changed.notify_all()

    # -- arrivals ----------------------------------------------------------------------------------------------
    def _alone(self, accepted: Accepted, talk: Conversation) -> bool:
        """Whether nobody else is served, and this unit has only to be thought."""
        quiet = len(self.table) == 1 and not self._freeing
        return quiet and not accepted.started and list(talk.unanswered) == [accepted.unit]

    def _admit(self, session: Session) -> None:
        """Books a new session in, before it exists. Raises SessionError RESOURCE_EXHAUSTED with the figures."""
        if self._admission is not None:
            options = session.options
            tokens = self._tokens(options.prompt)
            self._admission.admit(session.name, options.retention, tokens, options.solver_steps)

    def _keep_promise(self, request: UnitRequest) -> None:
        """Ends a session whose promised time is over, before its history breaks a deadline. Raises SessionError."""
        if self._admission is None or request.start:
            return
        session = self.table.get(request.key)
        ticket = self._admission.ticket(session.name) if session is not None else None
        if session is None or ticket is None:
            return
        try:
            ticket.check(request.unit)
        except SessionError as error:
            self._fail(self._conversations[session.name], error)
            raise

    def _check(self, request: UnitRequest) -> str:
        """Refuses bad input before the unit clock moves on, so that the session is as it was. Returns the text."""
        try:
            validate.pcm(request.pcm, self._config)
            validate.frames(request.frames, self._config)
            text = validate.text(request.text)
        except ValueError as error:
            raise SessionError("INVALID_ARGUMENT", str(error)) from None
        session = self.table.get(request.key)
        waiting = self._conversations[session.name].typed if session is not None else 0
        count = self._tokens(text)
        if waiting + count > MAX_QUEUED_TEXT:
            room = MAX_QUEUED_TEXT - waiting
            raise SessionError(
                "INVALID_ARGUMENT", f"text: expected at most {room} more tokens ({waiting} wait), got {count}"
            )
        return text

    def _tokens(self, text: str) -> int:
        return self._count_tokens(text) if text else 0

    def _conversation(self, accepted: Accepted, reply: Reply) -> Conversation:
        session = accepted.session
        held = reply if session.options.hold_open else None
        if accepted.started:
            changed = threading.Condition(self._lock)
            talk = self._conversations[session.name] = Conversation(session, accepted.epoch, held, changed)
            return talk
        talk = self._conversations[session.name]
        if accepted.resumed:
            self.meter.lost(len(talk.unanswered))
            talk.dismiss(SessionError("ABORTED", f"session {session.key!r} was resumed on another stream"))
            talk.held = held
        return talk

    def _refuse(self, request: UnitRequest, reply: Reply, error: Exception) -> None:
        if not isinstance(error, SessionError):
            _log.error("a request of session %r failed", request.key, exc_info=error)
            error = SessionError("INTERNAL", f"{type(error).__name__}: {error}")
        reply.fail(error)
        reply.finish()
        self.meter.refused(error.code, start=request.start)
        # Triton's sequence batcher has seen the end flag and lets no further unit through: the session is over.
        session = self.table.get(request.key)
        if request.end and not request.start and session is not None:
            self.table.end(session, f"its last unit was refused ({error.message})")

    # -- ends --------------------------------------------------------------------------------------------------
    def _fail(self, talk: Conversation, error: SessionError) -> None:
        with self._lock:
            talk.failure = talk.failure or error
            self.table.end(talk.session, str(error))

    def _release(self, session: Session, reason: str) -> None:
        """The one way out: called once per session by the table. Tells the client and frees everything."""
        talk = self._conversations.pop(session.name)
        error = talk.failure
        ending = "failed" if error else "completed" if reason == "completed" else "abandoned"
        self.meter.ended(session.name, ending, len(talk.unanswered))
        if self._tracer:
            self._tracer.ended(session.name)
        if error is None and reason != "completed":
            code = "UNAVAILABLE" if self.table.closing else "ABORTED"
            error = SessionError(code, f"session {session.key!r} has ended: {reason}")
        talk.over = True
        talk.changed.notify_all()
        talk.dismiss(error)
        self._freeing += 1
        self._threads.submit(self._free, talk)

    def _free(self, talk: Conversation) -> None:
        """Closes the session in both models: in the performer first, for it still reads the thinker's pages."""
        try:
            self._close(talk, "performer", self._call_performer)
            self._close(talk, "thinker", self._call_thinker)
        finally:
            with self._lock:
                self._freeing -= 1
                if self._admission is not None:
                    self._admission.release(talk.session.name)

    def _close(self, talk: Conversation, where: str, call: Call) -> None:
        """Closes the session in one model, and waits for what is under way: it comes back before its pages are given
        to somebody else. A job that the close has overtaken is refused there."""
        try:
            self._calls.close(talk, f"close in the {where}", call, CloseJob(talk.session.name, talk.epoch))
        except Exception as error:
            _log.warning("closing session %r: %s", talk.session.key, error)
        with self._lock:
            talk.changed.wait_for(lambda: talk.calls == 0, self._stall_seconds)

    # -- the watch ---------------------------------------------------------------------------------------------
    def poll(self) -> None:
        """One round of the watch: clients that have gone and sessions that are idle, for Triton reports neither, and
        calls that do not come back."""
        with self._lock:
            streams = [(talk, talk.replies()) for talk in self._conversations.values()]
        # Asking costs a message to the server, and units go on meanwhile.
        gone = [talk for talk, replies in streams if any(reply.cancelled() for reply in replies)]
        with self._lock:
            for talk in gone:
                if not talk.over and self.table.detach(talk.session, self._clock()):
                    self.meter.lost(len(talk.unanswered))
                    talk.dismiss(None)
            for talk, what in self._calls.stalled(self._stall_seconds):
                if not talk.over:
                    self._fail(talk, SessionError("UNAVAILABLE", f"{what}: no result in {self._stall_seconds:g} s"))
            self.table.expire(self._clock())

    def drain(self) -> None:
        """Takes no more units: sessions end with their last answer, or at once if none is owed."""
        with self._lock:
            self.table.drain()

    def abandon(self, reason: str) -> None:
        """Ends every session now with UNAVAILABLE, as when the thinker is dead and no unit can be finished."""
        with self._lock:
            self.table.closing = True
            for talk in list(self._conversations.values()):
                self._fail(talk, SessionError("UNAVAILABLE", reason))

    def stop(self) -> None:
        """Takes no more work; threads whose call does not return are left to the end of the process."""
        self._threads.stop()
        self._performing.stop()

    def status(self) -> dict[str, Any]:
        """Sessions now, counters so far, and for how long the oldest call has been under way."""
        with self._lock:
            return {
                "sessions": len(self.table),
                "closing": self.table.closing,
                "freeing": self._freeing,
                "units": self.units,
                "dropped": self.table.dropped,
                **self.meter.metrics.snapshot(),
                "oldest_call_s": self._calls.oldest_seconds(),
            }
