"""Where a perform job and its hand-over meet: whichever comes first waits here for the other.

The duplex loop sends the job to the performer when the thinker starts on the unit, the thinker sends the hand-over when
it is done. So no call stands between the last K/V of a unit and its first solver step.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from ..messages import CloseJob, HandOver, PerformJob

MAX_WAITING = 4096  # hand-overs, and sessions that are remembered as closed; the oldest goes first

Ticket = TypeVar("Ticket")
Key = tuple[str, int, int]  # session, epoch, unit


class Rendezvous(Generic[Ticket]):
    """Jobs wait with a ticket of the caller's. One thread at a time calls it."""

    def __init__(self) -> None:
        self._jobs: dict[Key, tuple[PerformJob, Ticket]] = {}  # bounded by who sends jobs
        self._handed: OrderedDict[Key, HandOver] = OrderedDict()
        self._closed: OrderedDict[str, int] = OrderedDict()  # session -> epoch

    def __len__(self) -> int:
        """Jobs that wait."""
        return len(self._jobs)

    def expect(self, job: PerformJob, ticket: Ticket) -> PerformJob | None:
        """The job as it can join, if its hand-over is here; else None, and it waits. KeyError if it waits already."""
        key = job.session, job.epoch, job.unit
        handed = self._handed.pop(key, None)
        if handed is not None:
            return _met(job, handed)
        if key in self._jobs:
            raise KeyError(key)
        self._jobs[key] = job, ticket
        return None

    def hand(self, handed: HandOver) -> tuple[PerformJob, Ticket] | None:
        """The job that waited for this, as it can join, with its ticket; None if nobody does yet, or ever will."""
        key = handed.session, handed.epoch, handed.unit
        waiting = self._jobs.pop(key, None)
        if waiting is not None:
            return _met(waiting[0], handed), waiting[1]
        if not self.closed(handed.session, handed.epoch):
            self._handed[key] = handed
            _limit(self._handed)
        return None

    def close(self, job: CloseJob) -> list[Ticket]:
        """Forgets a session; the tickets of jobs that waited. What comes for it later has come too late."""
        for key in [key for key in self._handed if key[0] == job.session and key[1] <= job.epoch]:
            del self._handed[key]
        gone = [key for key in self._jobs if key[0] == job.session and key[1] <= job.epoch]
        self._closed[job.session] = job.epoch
        self._closed.move_to_end(job.session)
        _limit(self._closed)
        return [self._jobs.pop(key)[1] for key in gone]

    def closed(self, session: str, epoch: int) -> bool:
        """Whether this session was closed not long ago."""
        return epoch <= self._closed.get(session, -1)

    def clear(self) -> list[Ticket]:
        """Forgets everything that waits; the tickets of the jobs."""
        jobs, self._jobs = self._jobs, {}
        self._handed.clear()
        return [ticket for _, ticket in jobs.values()]


def _met(job: PerformJob, handed: HandOver) -> PerformJob:
    # Not `dataclasses.replace`, which takes ten times as long: no engine works meanwhile.
    return PerformJob(
        job.session,
        job.epoch,
        job.unit,
        handed.seed,
        job.steps,
        job.deadline_ns,
        handed.origin,
        handed.history,
        handed.sent_ns,
    )


def _limit(waiting: OrderedDict[Key, HandOver] | OrderedDict[str, int]) -> None:
    while len(waiting) > MAX_WAITING:
        waiting.popitem(last=False)
