"""The thread that owns a Performer and a Renderer: a turn is a solver step, and units join between two of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ..messages import CloseJob, HandOver, PerformJob, PerformResult, SessionError
from ..worker import Item, Job, Outcome, Worker, fail_futures, resolve
from .performer import Key, Performer, job_key
from .performer import Outcome as Solved
from .renderer import Renderer
from .rendezvous import Rendezvous

RETRY_SECONDS = 0.0005  # jobs are there, but the scheduler waits for company

_log = logging.getLogger(__name__)


class PerformerWorker(Worker):
    """Runs solver steps while there are jobs; new ones join between two steps. What a step finished is rendered."""

    rest_seconds = 0.002  # the answer's way to its client takes about 1 ms, on cores that the noise can wait for

    def __init__(self, performer: Performer, renderer: Renderer, capacity: int = 1024) -> None:
        super().__init__("performer", capacity)
        self._performer, self._renderer = performer, renderer
        self._futures: dict[Key, Outcome] = {}
        self._ahead: Rendezvous[Outcome] = Rendezvous()  # jobs that came ahead of their hand-over

    def hand_over(self, handed: HandOver) -> None:
        """What the thinker sends, from the thread that receives it."""
        self.serve(handed, _handed_over)

    def _wait_seconds(self) -> float | None:
        if not self._performer.pending:
            return None
        return RETRY_SECONDS if self._performer.held_back else 0.0

    def _turn(self, items: Sequence[Item]) -> None:
        for job, future in items:
            if isinstance(job, PerformJob):
                self._take(job, future)
            elif isinstance(job, HandOver):
                met = self._ahead.hand(job)
                if met is not None:
                    self._join(*met)
                resolve(future, None)
            elif isinstance(job, CloseJob):
                fail_futures(self._ahead.close(job), SessionError("ABORTED", f"session {job.session!r} was closed"))
                self._finish(self._performer.leave(job))
                self._renderer.close(job.session, job.epoch)
                resolve(future, None)
            else:
                resolve(future, SessionError("INTERNAL", f"the performer takes no {type(job).__name__}"))
        self._finish(self._performer.tick())

    def _take(self, job: PerformJob, future: Outcome) -> None:
        """Lets a job join, or wait for its hand-over."""
        if self._ahead.closed(job.session, job.epoch):  # the close has overtaken it
            resolve(future, SessionError("ABORTED", f"session {job.session!r} was closed"))
        elif job.history is not None:
            self._join(job, future)
        else:
            try:
                met = self._ahead.expect(job, future)
            except KeyError:
                what = f"unit {job.unit} of session {job.session!r} waits for its hand-over already"
                resolve(future, SessionError("ALREADY_EXISTS", what))
            else:
                if met is not None:
                    self._join(met, future)

    def _join(self, job: PerformJob, future: Outcome) -> None:
        try:
            self._performer.join(job)
            self._futures[job_key(job)] = future
        except SessionError as error:
            resolve(future, error)

    def _alone(self, job: Job) -> bool:
        if isinstance(job, HandOver):
            alone = len(self._ahead) == 1
        else:
            alone = isinstance(job, PerformJob) and job.history is not None and not len(self._ahead)
        return alone and not self._performer.pending and self._renderer.alone(job.session)

    def _prepare(self) -> None:
        self._performer.prepare()

    def _idle(self) -> None:
        """Nothing to look after: the performer allocates nothing."""

    def _finish(self, outcomes: Sequence[Solved]) -> None:
        if not outcomes:
            return
        solved: list[tuple[Outcome, PerformResult]] = []
        for job, result in outcomes:
            future = self._futures[job_key(job)]
            if isinstance(result, PerformResult):
                solved.append((future, result))
            else:
                resolve(future, result)
        rendered = self._renderer.render([result for _, result in solved])
        for (future, _), result in zip(solved, rendered, strict=True):
            resolve(future, result)
        for job, _ in outcomes:
            del self._futures[job_key(job)]

    def _abandon(self, error: SessionError) -> None:
        self._performer.clear()
        futures, self._futures = self._futures, {}
        fail_futures([*futures.values(), *self._ahead.clear()], error)


def _handed_over(outcome: object) -> None:
    """Nobody waits for the outcome of a hand-over: if it is refused, its job stalls and ends its session."""
    if isinstance(outcome, Exception):
        _log.warning("hand-over: %s", outcome)
