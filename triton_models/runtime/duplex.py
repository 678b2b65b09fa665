"""The thinker/performer loop: how a user unit becomes an agent unit, and how sessions share one server (DESIGN 4).

    request k --> accept --> perceive(k) --> think(k) --KV slice--> perform(k) --> z_k --> render(k) --> response k
    request k+1 --> accept --> perceive(k+1), while k is performed and rendered --> think(k+1) waits for z_k

`Duplex._timeline` is that line; read it first. Everything else is about ends: every request that arrives gets exactly
one response or one error, and its stream is finalised, whatever happens (`_release` is the one way out of a session).

No Triton here: the caller injects `call_thinker` and `call_performer`, two async functions that take a job of
`messages.py` and return its result or raise SessionError. All methods run on one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from engine_builder.config import ModelConfig

from . import validate
from .admission import Admission
from .conversation import Conversation, Reply, Stages, Turn, UnitRequest, UnitResponse
from .duplex_meter import UNIT_NS, DuplexMeter
from .messages import (
    CloseJob,
    OpenJob,
    PerceiveJob,
    PerformJob,
    PerformResult,
    RenderJob,
    RenderResult,
    SessionError,
    ThinkJob,
    ThinkResult,
)
from .session import Accepted, Session, SessionTable
from .thinker_session import MAX_QUEUED_TEXT
from .tracing import Tracer

POLL_SECONDS = 0.5  # how long a vanished client or an idle session goes unnoticed
STALL_SECONDS = 10.0  # a call that takes longer will not come back: its process died under it, or hangs
SMOOTHING = 0.1  # weight of the newest measurement in the running estimate of what follows the solver

_log = logging.getLogger(__name__)

Call = Callable[[Any], Awaitable[Any]]


class Duplex:
    """All sessions of one server.

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
        poll_seconds: float = POLL_SECONDS,
        stall_seconds: float = STALL_SECONDS,
        clock: Callable[[], int] = time.monotonic_ns,
        tracer: Tracer | None = None,
        **table: Any,
    ) -> None:
        """admission: the books of promised time and pages; None admits up to `max_sessions` unseen
        degrade: late units are shortened (`degradation.py`)
        table: arguments of `SessionTable` but `release` and `admit`
        """
        self.table = SessionTable(release=self._release, admit=self._admit, **table)
        self.units = 0  # answered
        self.meter = DuplexMeter()
        self._config = config
        self._call_thinker, self._call_performer = call_thinker, call_performer
        self._count_tokens = count_tokens
        self._poll_seconds, self._stall_seconds = poll_seconds, stall_seconds
        self._clock, self._tracer = clock, tracer
        self._admission, self._degrade = admission, degrade
        self._conversations: dict[str, Conversation] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._calls: dict[asyncio.Future[Any], float] = {}  # under way, since when
        self._after_solver_ns = 0.0  # running estimate: from the end of perform to the response

    # -- one unit, from socket to socket -----------------------------------------------------------------------
    def serve(self, request: UnitRequest, reply: Reply) -> None:
        """Takes one request; its answer goes to `reply` later. Call it in the order of arrival. Never raises."""
        arrival = self._clock()
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
        self.meter.accepted(accepted, arrival)
        talk.unanswered[accepted.unit] = reply
        talk.typed = max(0, talk.typed + self._tokens(text) - self._config.language.text_tokens)
        turn = Turn(talk, accepted, request, text, arrival, before=talk.newest, stages=Stages())
        talk.newest = turn.stages
        self._spawn(self._unit(turn), talk.tasks)

    async def _unit(self, turn: Turn) -> None:
        """One unit's task: ends in its response, or in the end of its session."""
        talk, session, unit = turn.talk, turn.talk.session, turn.accepted.unit
        try:
            response = await self._timeline(turn)
        except SessionError as error:
            self._fail(talk, error)
            return
        except Exception as error:
            _log.exception("unit %d of session %r failed", unit, session.key)
            self._fail(talk, SessionError("INTERNAL", f"unit {unit}: {type(error).__name__}: {error}"))
            return
        reply = talk.unanswered.pop(unit, None)
        fresh = self.table.fence(session, turn.accepted.epoch)
        if reply is not None:
            reply.send(response if fresh else talk.output.blank(response))
            self.units += 1
            sent = self._clock()
            self.meter.answered(turn.accepted, response.info, turn.arrival_ns, sent)
            if self._tracer:
                self._tracer.answered(session.name, unit, response.info, turn.arrival_ns, sent)
            if reply is not talk.held:
                reply.finish()
        self.table.finish(session, unit, self._clock())

    async def _timeline(self, turn: Turn) -> UnitResponse:
        """perceive -> think -> perform -> render, each as soon as the unit before allows it."""
        talk, before, request = turn.talk, turn.before, turn.request
        options, unit = talk.session.options, turn.accepted.unit
        name, epoch = talk.session.name, talk.epoch
        think, perform = self._call_thinker, self._call_performer

        if turn.accepted.started:
            retention = options.retention.to_json()
            await self._call(talk, think, OpenJob(name, epoch, options.prompt, options.seed, retention))

        await before.thought.wait()
        heard: PerceiveJob | None = PerceiveJob(name, epoch, unit, request.pcm, request.frames)
        if not before.rendered.is_set():  # z of the unit before is still being made: perceive meanwhile
            await self._call(talk, think, heard)
            heard = None  # otherwise it goes along with the think job, which saves a call
            await before.rendered.wait()

        thought: ThinkResult = await self._call(talk, think, ThinkJob(name, epoch, unit, turn.text, heard))
        turn.stages.thought.set()

        deadline = turn.arrival_ns + UNIT_NS - round(self._after_solver_ns)
        steps, origin, history = options.solver_steps, thought.origin, thought.history
        solving = PerformJob(name, epoch, unit, thought.seed, steps, deadline, origin, history)
        solved: PerformResult = await self._call(talk, perform, solving)
        solved_ns = self._clock()

        shown: RenderResult = await self._call(
            talk, think, RenderJob(name, epoch, unit, solved.z_video, solved.z_audio)
        )
        turn.stages.rendered.set()

        now = self._clock()
        self._after_solver_ns += SMOOTHING * (now - solved_ns - self._after_solver_ns)
        late = turn.arrival_ns + UNIT_NS if self._degrade else now
        pcm, frames, measures = talk.output.shorten(shown, solved.steps, steps, now, late)
        engines = {**thought.ms, "perform": solved.ms["perform"], **shown.ms}
        total = (now - turn.arrival_ns) / 1e6
        ms = {"queue": total - sum(engines.values()), **engines, "total": total}  # queue: all that was not engine time
        info: dict[str, Any] = {
            "ms": {stage: round(value, 3) for stage, value in ms.items()},
            "epoch": turn.accepted.epoch,
            "steps": solved.steps,
            "degradation": measures,
        }
        ticket = self._admission.ticket(name) if self._admission is not None else None
        if ticket is not None and ticket.units is not None:
            info["lasts_seconds"] = ticket.seconds
            if (notice := ticket.notice(unit)) is not None:
                info["notice"] = notice
        return UnitResponse(unit, thought.state, thought.text, pcm, frames, info)

    async def _call(self, talk: Conversation, call: Call, job: object) -> Any:
        """A call that never takes for ever, and that goes on to its end if the unit's task is cancelled under it."""
        begin = self._clock() if self._tracer else 0
        future = asyncio.ensure_future(call(job))
        talk.calls.add(future)
        self._calls[future] = time.monotonic()
        future.add_done_callback(lambda f: self._called(talk, f))
        await asyncio.wait({future}, timeout=self._stall_seconds)
        if not future.done():
            what = type(job).__name__.removesuffix("Job").lower()
            raise SessionError("UNAVAILABLE", f"{what}: no result in {self._stall_seconds:g} s")
        result = future.result()
        if self._tracer:
            self._tracer.hop(job, result, begin, self._clock())
        return result

    def _called(self, talk: Conversation, future: asyncio.Future[Any]) -> None:
        talk.calls.discard(future)
        self._calls.pop(future, None)
        if not future.cancelled():
            future.exception()  # marks it as seen: the unit's task may be gone

    # -- arrivals ----------------------------------------------------------------------------------------------
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
            talk = self._conversations[session.name] = Conversation(session, accepted.epoch, held)
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
        talk.dismiss(error)
        current = asyncio.current_task()
        for task in talk.tasks:
            if task is not current:
                task.cancel()
        self._spawn(self._free(talk), self._background)

    async def _free(self, talk: Conversation) -> None:
        """Closes the session in both models: in the performer first, for it still reads the thinker's pages."""
        job = CloseJob(talk.session.name, talk.epoch)
        try:
            for call in (self._call_performer, self._call_thinker):
                try:
                    await self._call(talk, call, job)
                except Exception as error:
                    _log.warning("closing session %r: %s", talk.session.key, error)
                # What was under way when the session ended comes back before its pages are given to somebody else.
                if talk.calls:
                    await asyncio.wait(set(talk.calls), timeout=self._stall_seconds)
        finally:
            if self._admission is not None:
                self._admission.release(talk.session.name)

    # -- the watch ---------------------------------------------------------------------------------------------
    async def watch(self) -> None:
        """Looks for clients that have gone and for idle sessions, for ever: Triton reports neither."""
        while True:
            await asyncio.sleep(self._poll_seconds)
            try:
                self.poll()
            except Exception:
                _log.exception("the watch over the sessions failed")

    def poll(self) -> None:
        """One round of `watch`."""
        for talk in list(self._conversations.values()):
            if any(reply.cancelled() for reply in talk.replies()) and self.table.detach(talk.session, self._clock()):
                self.meter.lost(len(talk.unanswered))
                talk.dismiss(None)
        self.table.expire(self._clock())

    def drain(self) -> None:
        """Takes no more units: sessions end with their last answer, or at once if none is owed."""
        self.table.drain()

    def abandon(self, reason: str) -> None:
        """Ends every session now with UNAVAILABLE, as when the thinker is dead and no unit can be finished."""
        self.table.closing = True
        for talk in list(self._conversations.values()):
            self._fail(talk, SessionError("UNAVAILABLE", reason))

    def status(self) -> dict[str, Any]:
        """Sessions now, counters so far, and for how long the oldest call has been under way."""
        since = min(self._calls.values(), default=None)
        return {
            "sessions": len(self.table),
            "closing": self.table.closing,
            "freeing": len(self._background),
            "units": self.units,
            "dropped": self.table.dropped,
            **self.meter.metrics.snapshot(),
            "oldest_call_s": 0.0 if since is None else round(time.monotonic() - since, 3),
        }

    def _spawn(self, work: Coroutine[Any, Any, None], keep: set[asyncio.Task[None]]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        keep.add(task)  # the loop itself keeps no strong reference
        task.add_done_callback(keep.discard)
