"""The performer: runs the flow-matching solver, and nothing else, over the history that the thinker committed.

Jobs join and leave at every solver step: a tick is one `perform` call over the rows that the scheduler picks, each at
its own tau. Noisy latents live here from the join to the last step; their K/V is never stored.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from engine_builder.layout import UnitLayout, rope_tables

from . import noise, validate
from .engine import EngineSet
from .history import page_multiple, stack_views
from .kv_pool import KVPool
from .messages import CloseJob, Float32, PerformJob, PerformResult, SessionError
from .metrics import Metrics
from .scheduler import Row, StepScheduler

_log = logging.getLogger(__name__)

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
    x_video: Float32  # [n_v, c_v] at taus[index]
    x_audio: Float32  # [n_a, c_a]
    cos: Float32  # [n_v + n_a, D / 2]
    sin: Float32
    joined_ns: int
    index: int = 0
    started_ns: int = -1  # of its first tick
    done: int = 0  # evaluations so far

    @property
    def tau(self) -> float:
        return self.taus[self.index]


class Performer:
    """Solves units over `pool`, which it only reads. One thread calls a Performer."""

    def __init__(
        self,
        engines: EngineSet,
        pool: KVPool,
        scheduler: StepScheduler,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.config = engines.config
        self.metrics = Metrics()
        self._engine = engines["perform"]
        self._pool = pool
        self._scheduler = scheduler
        self._clock = clock
        self._page_multiple = page_multiple(pool.geometry.page_tokens, self.config.backbone.head_dim)
        self._layout = UnitLayout.of(self.config)
        self._solves: dict[Hashable, _Solve] = {}
        self.held_back = False  # the last tick ran nothing although jobs are here: the scheduler waits for company

    @property
    def pending(self) -> int:
        """Jobs that joined and have not left."""
        return len(self._solves)

    def join(self, job: PerformJob) -> None:
        """Takes a job into the batch from the next tick on. Raises SessionError INVALID_ARGUMENT or ALREADY_EXISTS."""
        key = job_key(job)
        if key in self._solves:
            raise SessionError("ALREADY_EXISTS", f"unit {job.unit} of session {job.session!r} is being performed")
        geometry = self._pool.geometry
        try:
            validate.history(job.history.page_ids, job.history.ranges, geometry.num_pages, geometry.page_tokens)
            taus = self.config.solver.taus(job.steps)
            x_video, x_audio = noise.latents(self.config, job.seed, job.unit)
        except ValueError as error:
            raise SessionError("INVALID_ARGUMENT", str(error)) from None
        cos, sin = rope_tables(self.config.backbone, self._layout.noisy_positions(job.origin, job.unit))
        now = self._clock()
        self._solves[key] = _Solve(job, taus, x_video, x_audio, cos, sin, joined_ns=now)
        self._scheduler.join(key, deadline_ns=job.deadline_ns, steps=job.steps, now_ns=now)

    def leave(self, job: CloseJob) -> list[Outcome]:
        """Drops what a session still has here, before its pages are freed; returns those jobs as ABORTED."""
        gone = [key for key, s in self._solves.items() if s.job.session == job.session and s.job.epoch <= job.epoch]
        error = SessionError("ABORTED", f"session {job.session!r} was closed")
        return [(self._drop(key).job, error) for key in gone]

    def tick(self) -> list[Outcome]:
        """One solver step of the rows that the scheduler picks; returns the jobs that finished or failed with it."""
        begin = self._clock()
        # A scheduler that batches whole requests goes on with rows whose job has left.
        rows = [row for row in self._scheduler.next_tick(begin) if row.job in self._solves]
        self.held_back = not rows and bool(self._solves)
        if not rows:
            return []
        solves = [self._solves[row.job] for row in rows]
        self._start(solves, begin)
        try:
            out = self._engine.run(self._inputs(solves))
        except Exception as error:
            _log.exception("the perform call failed")
            self.metrics.count("perform.crashed")
            failure = SessionError("INTERNAL", f"perform: the engine call failed ({error})")
            return [(self._drop(row.job).job, failure) for row in rows]
        finished: list[Outcome] = []
        for b, (row, solve) in enumerate(zip(rows, solves, strict=True)):
            if not (np.isfinite(out["velocity_video"][b]).all() and np.isfinite(out["velocity_audio"][b]).all()):
                what = f"perform {solve.job.unit} of session {solve.job.session!r}"
                finished.append((solve.job, SessionError("INTERNAL", f"{what}: NaN or Inf in the velocity")))
                continue
            self._step(solve, row, out["velocity_video"][b], out["velocity_audio"][b])
        end = self._clock()
        self.metrics.time("perform", (end - begin) / 1e6, len(rows))
        for job, _ in finished:
            self._drop(job_key(job))
        for key in self._scheduler.completed(rows, now_ns=end):
            if key in self._solves:
                solve = self._drop(key)
                finished.append((solve.job, self._result(solve, end)))
        return finished

    def clear(self) -> None:
        """Drops every job, as on shutdown."""
        for key in list(self._solves):
            self._drop(key)

    def stats(self) -> dict[str, float]:
        """Jobs now; counters and timings so far."""
        return {"jobs": len(self._solves), **self.metrics.snapshot()}

    def _inputs(self, solves: Sequence[_Solve]) -> dict[str, np.ndarray]:
        return {
            "x_video": np.stack([solve.x_video for solve in solves]),
            "x_audio": np.stack([solve.x_audio for solve in solves]),
            "tau": np.array([solve.tau for solve in solves], dtype=np.float32),
            "rope_cos": np.stack([solve.cos for solve in solves]),
            "rope_sin": np.stack([solve.sin for solve in solves]),
            **stack_views([solve.job.history for solve in solves], self._page_multiple),
            "k_pool": self._pool.k,
            "v_pool": self._pool.v,
        }

    def _start(self, solves: Sequence[_Solve], now: int) -> None:
        """Books the jobs whose first step this tick is."""
        under_way = sum(solve.started_ns >= 0 for solve in solves)
        for solve in solves:
            if solve.started_ns < 0:
                solve.started_ns = now
                self.metrics.observe("join.rows", under_way)
                self.metrics.observe("join.wait", (now - solve.joined_ns) / 1e9)

    def _step(self, solve: _Solve, row: Row, v_video: Float32, v_audio: Float32) -> None:
        """Euler: x += (tau_next - tau) v. A jump goes straight to tau = 0, which is the network's estimate of z_0."""
        following = len(solve.taus) - 1 if row.jump else solve.index + 1
        step = np.float32(solve.taus[following] - solve.tau)
        solve.x_video = solve.x_video + step * v_video
        solve.x_audio = solve.x_audio + step * v_audio
        if row.jump:
            self.metrics.count("steps.skipped", row.steps - row.step - 1)
        solve.index = following
        solve.done += 1

    def _result(self, solve: _Solve, now: int) -> PerformResult:
        job = solve.job
        queue, perform = (solve.started_ns - solve.joined_ns) / 1e6, (now - solve.started_ns) / 1e6
        ms = {"queue": queue, "perform": perform}
        return PerformResult(job.session, job.epoch, job.unit, solve.x_video, solve.x_audio, solve.done, ms)

    def _drop(self, key: Hashable) -> _Solve:
        self._scheduler.leave(key)
        return self._solves.pop(key)
