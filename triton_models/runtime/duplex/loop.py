"""One unit's way through the stages (DESIGN 4).

    request k --> accept --> perceive(k) --> think(k) --KV slice--> perform(k) --> z_k --> render(k) --> response k
                             '------ thinker -------'               '------- performer -------'
    request k+1 --> accept --> perceive(k+1), while k is performed and rendered --> think(k+1) takes z_k along

`UnitLoop._think` and `UnitLoop._perform` are that line: a think call and a perform call, from the unit's one thread,
which also answers the client. Where both go to one stage, the thinker has handed the slice over before it answers, and
the perform call only waits for what is being solved meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from ..messages import OpenJob, PerceiveJob, PerformJob, PerformResult, SessionError, ThinkJob, ThinkResult
from . import tracing
from .contract import Call, Measure, UnitResponse
from .conversation import Conversation, Over, UnitWork
from .guard import PASS, GuardPost
from .meter import UNIT_NS
from .output import MUTED, measures

SMOOTHING = 0.1  # weight of the newest measurement in the running estimates of what is still to come

_log = logging.getLogger(__name__)


class UnitLoop:
    """Takes units through both models and answers them. Holds no session: `Conversation` says how far each one is."""

    def __init__(
        self,
        call_thinker: Call,
        call_performer: Call,
        answer: Callable[[UnitWork, UnitResponse], None],
        fail: Callable[[Conversation, SessionError], None],
        *,
        threads: int,
        degrade: bool,
        traced: bool,
        clock: Callable[[], int],
        guard: GuardPost | None,
    ) -> None:
        """answer, fail: what becomes of a unit, or of its session
        threads: for as many units at once; more wait for one
        guard: looks at every unit before it leaves
        """
        self._guard = guard
        self._call_thinker, self._call_performer = call_thinker, call_performer
        self._to_answer, self._fail = answer, fail
        self._degrade, self._traced, self._clock = degrade, traced, clock
        self._threads = ThreadPoolExecutor(threads, "unit")
        # Running estimates, for deadlines: from the last solver step, and from the think call, to the response.
        self._after_solver_ns = self._after_think_ns = 0.0

    def start(self, work: UnitWork) -> None:
        self.run(self._carry, work)

    def run(self, function: Callable[..., None], *args: Any) -> None:
        """Runs it in a thread of the units; after `stop` it does nothing."""
        with suppress(RuntimeError):  # it was shut down
            self._threads.submit(function, *args)

    def stop(self) -> None:
        """Takes no more work."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _carry(self, work: UnitWork) -> None:
        """The thread of a unit. A failure ends its session."""
        talk, unit = work.talk, work.accepted.unit
        try:
            self._perform(work, *self._think(work))
        except Over:
            pass
        except SessionError as error:
            self._fail(talk, error)
        except Exception as error:
            _log.exception("unit %d of session %r failed", unit, talk.session.key)
            self._fail(talk, SessionError("INTERNAL", f"unit {unit}: {type(error).__name__}: {error}"))

    def _think(self, work: UnitWork) -> tuple[ThinkJob, ThinkResult]:
        """perceive and think, each as soon as the unit before allows it."""
        talk, request = work.talk, work.request
        options, unit = talk.session.options, work.accepted.unit
        name, epoch = talk.session.name, talk.epoch

        if (ahead := work.arrival_ns - self._clock()) > 0:  # of real time: only units that are due meet the others
            talk.rest(ahead / 1e9)
        if work.accepted.started:
            retention = options.retention.to_json()
            picture, voice = options.persona.picture, options.persona.voice
            job = OpenJob(name, epoch, options.prompt, options.seed, retention, picture, voice)
            self._call(work, self._call_thinker, job)

        talk.wait_for("thought", unit - 1)
        pcm = talk.without_echo(unit, request.pcm)
        heard: PerceiveJob | None = PerceiveJob(name, epoch, unit, pcm, request.frames)
        if not talk.reached("solved", unit - 1):  # z of the unit before is still being made: perceive meanwhile
            self._call(work, self._call_thinker, heard)
            heard = None  # otherwise it goes along with the think job, which saves a call
        talk.wait_for("solved", unit - 1)

        work.think_ns = self._clock()
        z_video, z_audio = talk.z or (None, None)
        due = work.arrival_ns + UNIT_NS
        latest, deadline = due - round(self._after_think_ns), due - round(self._after_solver_ns)
        job = ThinkJob(
            name,
            epoch,
            unit,
            work.text,
            heard,
            z_video,
            z_audio,
            max(0, latest),
            options.solver_steps,
            max(0, deadline),
            work.interrupt,
        )
        thought: ThinkResult = self._call(work, self._call_thinker, job)
        talk.reach(thought=unit)
        return job, thought

    def _perform(self, work: UnitWork, job: ThinkJob, thought: ThinkResult) -> None:
        """perform and render, and the answer to the client."""
        talk, unit, due = work.talk, work.accepted.unit, work.arrival_ns + UNIT_NS
        name, seed, origin = talk.session.name, thought.seed, thought.origin
        solving = PerformJob(
            name, talk.epoch, unit, seed, job.steps, job.deadline_ns, origin, thought.history, thought.seal
        )
        begun = None
        if self._guard is not None:  # it forgets a session for good at its end
            begun = talk.unless_over(self._guard.begin, name, unit, thought.state, thought.text)
        solved: PerformResult = self._call(work, self._call_performer, solving)
        if solved.pcm is None or solved.frames is None:
            raise SessionError("INTERNAL", f"unit {unit}: expected pcm and frames of the performer, got none")
        talk.reach(solved=unit, z=(solved.z_video, solved.z_audio))
        talk.wait_for("answered", unit - 1)

        muted = begun is not None and self._muted(talk, unit, begun)
        now = self._clock()
        self._after_solver_ns += SMOOTHING * (now - solved.solved_ns - self._after_solver_ns)
        self._after_think_ns += SMOOTHING * (now - work.think_ns - self._after_think_ns)
        taken = measures(solved.steps, job.steps, now - due if self._degrade else 0)
        pcm, frames = talk.output.shorten(unit, solved.pcm, solved.frames, list(MUTED) if muted else taken)
        info = self._info(work, thought, solved, taken, now)
        text = thought.text
        if talk.canceller is not None and talk.canceller.active:
            info["echo"] = "cancelled"
        if muted:
            text, info["muted"] = "", talk.output.muted_for
        self._to_answer(work, UnitResponse(unit, thought.state, text, pcm, frames, info, thought.heard))

    def _muted(self, talk: Conversation, unit: int, begun: Any) -> bool:
        """Whether the guard keeps back this unit, for itself or for one before it. Raises SessionError where it ends
        the session."""
        verdict = self._guard.verdict(begun) if self._guard is not None else PASS
        if verdict.kind == "end":
            raise SessionError("ABORTED", f"the guard ended the session: {verdict.reason}")
        if verdict.kind == "mute":
            talk.output.mute_until = max(talk.output.mute_until, unit + verdict.units)
            talk.output.muted_for = verdict.reason
        return unit < talk.output.mute_until

    def _call(self, work: UnitWork, call: Call, job: object) -> Any:
        if not self._traced:
            return work.talk.call(call, job)
        begin = self._clock()
        result = work.talk.call(call, job)
        work.spans += tracing.spans(job, result, begin, self._clock())
        return result

    def _info(
        self, work: UnitWork, thought: ThinkResult, solved: PerformResult, taken: list[Measure], now: int
    ) -> dict[str, Any]:
        """What the client is told of a unit besides its media."""
        engines = {**thought.ms, "perform": solved.ms["perform"], "render": solved.ms["render"]}
        total = (now - work.arrival_ns) / 1e6
        ms = {"queue": total - sum(engines.values()), **engines, "total": total}  # queue: all that was not engine time
        return {
            "ms": {stage: round(value, 3) for stage, value in ms.items()},
            "epoch": work.accepted.epoch,
            "steps": solved.steps,
            "degradation": taken,
        }
