"""The performer: runs the flow-matching solver, and nothing else, over the history that the thinker committed.

Jobs join and leave at every solver step: a tick is one `perform` call over the rows that the scheduler picks, each at
its own tau. Noisy latents live here from the join to the last step; their K/V is never stored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from engine_builder.layout import UnitLayout, rope_tables

from .. import validate
from ..engines.engine import EngineError, EngineSet, call_failed
from ..engines.solver import Solver, SolverFull
from ..kv.pool import Pool
from ..messages import CloseJob, PerformJob, PerformResult, SessionError
from ..metrics import Metrics
from . import noise
from .scheduler import StepScheduler

MAX_UNITS = 256  # in flight at once, unless a solver is given

Key = tuple[str, int, int]  # session, epoch, unit
Outcome = tuple[PerformJob, PerformResult | SessionError]


def job_key(job: PerformJob) -> Key:
    """What names a job in the performer: jobs hold arrays and cannot be dictionary keys themselves."""
    return job.session, job.epoch, job.unit


@dataclass(eq=False)
class _Solve:
    """One unit of one session between its noise and its clean latents."""

    job: PerformJob
    taus: list[float]
    slot: int  # of the solver, which holds its latents at taus[index]
    joined_ns: int
    index: int = 0
    following: int = 0  # the index to which its tick leads
    started_ns: int = -1  # of its first tick
    done: int = 0  # evaluations so far
    engine_ns: int = 0  # of the engine calls it had a row in


class Performer:
    """Solves units over `pool`, which it only reads. One thread calls a Performer."""

    def __init__(
        self,
        engines: EngineSet,
        pool: Pool,
        scheduler: StepScheduler,
        clock: Callable[[], int] = time.monotonic_ns,
        solver: Solver | None = None,
    ) -> None:
        self.config = engines.config
        self.metrics = Metrics()
        self._solver = solver or engines.target.solver(engines["perform"], pool, MAX_UNITS)
        self._pool = pool
        self._scheduler = scheduler
        self._clock = clock
        self._layout = UnitLayout.of(self.config)
        self._solves: dict[Hashable, _Solve] = {}
        self.held_back = False  # the last tick ran nothing although jobs are here: the scheduler waits for company

    @property
    def pending(self) -> int:
        """Jobs that joined and have not left."""
        return len(self._solves)

    def join(self, job: PerformJob) -> None:
        """Takes a job into the batch from the next tick on. Raises SessionError: INVALID_ARGUMENT, ALREADY_EXISTS,
        RESOURCE_EXHAUSTED or INTERNAL."""
        key = job_key(job)
        if key in self._solves:
            raise SessionError("ALREADY_EXISTS", f"unit {job.unit} of session {job.session!r} is being performed")
        geometry, history = self._pool.geometry, job.history
        if history is None:
            raise SessionError("INVALID_ARGUMENT", f"unit {job.unit}: expected a history, got a job without one")
        try:
            validate.history(history.page_ids, history.ranges, geometry.num_pages, geometry.page_tokens)
            taus = self.config.solver.taus(job.steps)
            x_video, x_audio = noise.latents(self.config, job.seed, job.unit)
            positions = self._layout.noisy_positions(job.origin, job.unit)
            cos, sin = rope_tables(self.config.backbone, positions)
        except ValueError as error:
            raise SessionError("INVALID_ARGUMENT", str(error)) from None
        try:
            slot = self._solver.put(x_video, x_audio, cos, sin, history)
        except SolverFull as error:
            raise SessionError("RESOURCE_EXHAUSTED", str(error)) from None
        except EngineError as error:
            raise SessionError("INTERNAL", f"perform: {error}") from None
        now = self._clock()
        self._solves[key] = _Solve(job, taus, slot, joined_ns=now)
        self._scheduler.join(key, deadline_ns=job.deadline_ns, steps=job.steps, now_ns=now)

    def leave(self, job: CloseJob) -> list[Outcome]:
        """Drops what a session still has here, before its pages are freed; returns those jobs as ABORTED."""
        gone = [key for key, s in self._solves.items() if s.job.session == job.session and s.job.epoch <= job.epoch]
        error = SessionError("ABORTED", f"session {job.session!r} was closed")
        return [(self._drop(key).job, error) for key in gone]

    def tick(self) -> list[Outcome]:
        """One solver step of the rows that the scheduler picks; returns the jobs that finished or failed with it."""
        begin = self._clock()
        rows, solves, starting = [], [], []
        slots, taus, steps = [], [], []
        for row in self._scheduler.next_tick(begin):
            solve = self._solves.get(row.job)
            if solve is None:  # a scheduler that batches whole requests goes on with rows whose job has left
                continue
            # A jump goes straight to tau = 0, which is the network's estimate of z_0.
            solve.following = len(solve.taus) - 1 if row.jump else solve.index + 1
            tau = solve.taus[solve.index]
            rows.append(row)
            solves.append(solve)
            slots.append(solve.slot)
            taus.append(tau)
            steps.append(solve.taus[solve.following] - tau)
            if solve.started_ns < 0:
                starting.append(solve)
        self.held_back = not rows and bool(self._solves)
        if not rows:
            return []
        if starting:
            self._start(starting, len(rows) - len(starting), begin)
        engine_begin = self._solver.engine_ns
        try:
            finite = self._solver.tick(slots, taus, steps)
        except Exception as error:
            failure = call_failed("perform", error, self.metrics)
            return [(self._drop(row.job).job, failure) for row in rows]
        engine_ns = self._solver.engine_ns - engine_begin
        finished: list[Outcome] = []
        for row, solve, fine in zip(rows, solves, finite, strict=True):
            solve.engine_ns += engine_ns
            if not fine:
                finished.append((solve.job, _not_finite(solve.job)))
                continue
            if row.jump:
                self.metrics.count("steps.skipped", row.steps - row.step - 1)
            solve.index = solve.following
            solve.done += 1
        end = self._clock()
        self.metrics.time("perform", (end - begin) / 1e6, len(rows))
        for job, _ in finished:
            self._drop(job_key(job))
        for key in self._scheduler.completed(rows, now_ns=end):
            solve = self._solves.get(key)
            if solve is not None:
                finished.append((solve.job, self._result(solve, end)))
                self._drop(key)
        return finished

    def clear(self) -> None:
        """Drops every job, as on shutdown."""
        for key in list(self._solves):
            self._drop(key)

    def stats(self) -> dict[str, float]:
        """Jobs now; counters and timings so far."""
        return {"jobs": len(self._solves), **self.metrics.snapshot()}

    def _start(self, solves: Sequence[_Solve], under_way: int, now: int) -> None:
        """Books the jobs whose first step this tick is; with them tick `under_way` others."""
        for solve in solves:
            solve.started_ns = now
            self.metrics.observe("join.rows", under_way)
            self.metrics.observe("join.wait", (now - solve.joined_ns) / 1e9)

    def _result(self, solve: _Solve, now: int) -> PerformResult | SessionError:
        job = solve.job
        ms = {"queue": (solve.started_ns - solve.joined_ns) / 1e6, "perform": solve.engine_ns / 1e6}
        z_video, z_audio = self._solver.take(solve.slot)
        if not validate.finite(z_video, z_audio):
            return _not_finite(job)
        return PerformResult(job.session, job.epoch, job.unit, z_video, z_audio, solve.done, now, ms=ms)

    def _drop(self, key: Hashable) -> _Solve:
        self._scheduler.leave(key)
        solve = self._solves.pop(key)
        self._solver.drop(solve.slot)
        return solve


def _not_finite(job: PerformJob) -> SessionError:
    what = f"perform {job.unit} of session {job.session!r}"
    return SessionError("INTERNAL", f"{what}: NaN or Inf in the velocity")
