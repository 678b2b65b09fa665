"""The thread that owns a Performer and a Renderer: a round is a solver step, and units join between two of them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from ..messages import CloseJob, PerformJob, PerformResult, SessionError
from ..worker import Item, Worker, resolve
from .performer import Key, Outcome, Performer, job_key
from .renderer import Renderer

RETRY_SECONDS = 0.0005  # jobs are there, but the scheduler waits for company


class PerformerWorker(Worker):
    """Runs solver steps while there are jobs; new ones join between two steps. What a step finished is rendered."""

    def __init__(self, performer: Performer, renderer: Renderer, capacity: int = 1024) -> None:
        super().__init__("performer", capacity)
        self._performer, self._renderer = performer, renderer
        self._futures: dict[Key, Future[Any]] = {}

    def _wait_seconds(self) -> float | None:
        if not self._performer.pending:
            return None
        return RETRY_SECONDS if self._performer.held_back else 0.0

    def _round(self, items: Sequence[Item]) -> None:
        for job, future in items:
            if isinstance(job, PerformJob):
                try:
                    self._performer.join(job)
                    self._futures[job_key(job)] = future
                except Exception as error:  # of this job alone
                    resolve(future, error if isinstance(error, SessionError) else self._failure(error))
            elif isinstance(job, CloseJob):
                self._finish(self._performer.leave(job))
                self._renderer.close(job.session, job.epoch)
                resolve(future, None)
            else:
                resolve(future, SessionError("INTERNAL", f"the performer takes no {type(job).__name__}"))
        self._finish(self._performer.tick())

    def _finish(self, outcomes: Sequence[Outcome]) -> None:
        if not outcomes:
            return
        solved: list[tuple[Future[Any], PerformResult]] = []
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

    def _idle(self) -> None:
        """Nothing to look after: the performer allocates nothing."""

    def _abandon(self, error: SessionError) -> None:
        self._performer.clear()
        futures, self._futures = self._futures, {}
        for future in futures.values():
            resolve(future, error)
