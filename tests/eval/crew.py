"""Two workers in processes of their own, one thread each, and a list of jobs between them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

from .parts import Part
from .work import Outcome, Sources, Worker

_STOP_SECONDS = 60.0
_TELL = 10  # units between two messages of progress


class JobFailed(RuntimeError):
    """A job raised; the message holds its traceback."""


class _Stopped(Exception):
    """The evaluation was interrupted."""


@dataclass(frozen=True)
class Progress:
    """Units played since the last message of this worker."""

    units: int


class Crew:
    """Plays the jobs of parts in their order. Leave the `with` block early and what is under way is dropped."""

    def __init__(self, sources: Sources, size: int = 2) -> None:
        self._sources, self._size = sources, size
        context = multiprocessing.get_context("spawn")
        self._jobs: Any = context.Queue()
        self._results: Any = context.Queue()
        self._stop = context.Event()
        self._context = context
        self._processes: list[BaseProcess] = []

    def __enter__(self) -> Crew:
        # One thread a worker, and before numpy and torch are loaded: they would start one for every core.
        threads = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        os.environ.update(dict.fromkeys(threads, "1"))
        try:
            for number in range(self._size):
                arguments = (self._sources, self._jobs, self._results, self._stop)
                process = self._context.Process(target=_work, args=arguments, name=f"eval-{number}", daemon=True)
                process.start()
                self._processes.append(process)
        finally:
            for name, value in threads.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        end = time.monotonic() + _STOP_SECONDS
        for process in self._processes:
            # What is still in the queue must be taken out: its writer waits for that before it ends.
            while process.is_alive() and time.monotonic() < end:
                with contextlib.suppress(queue.Empty):
                    self._results.get(timeout=0.1)
            if process.is_alive():
                process.kill()
            process.join()

    def play(self, parts: Sequence[Part]) -> Iterator[Outcome | Progress]:
        """Outcomes as they come, with progress between them. Raises JobFailed."""
        jobs = [(part, first, last) for part in parts for first, last in part.jobs()]
        for job in jobs:
            self._jobs.put(job)
        for _ in self._processes:
            self._jobs.put(None)
        left = len(jobs)
        while left:
            try:
                item = self._results.get(timeout=1.0)
            except queue.Empty:
                dead = [p for p in self._processes if p.exitcode not in (None, 0)]
                if dead:
                    raise JobFailed(f"{dead[0].name}: ended with exit code {dead[0].exitcode}") from None
                continue
            if isinstance(item, str):
                raise JobFailed(item)
            left -= isinstance(item, Outcome)
            yield item


def _work(sources: Sources, jobs: Any, results: Any, stop: Any) -> None:
    """The body of a worker process. Ctrl-C is for the parent, which then sets `stop`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    try:
        import torch

        torch.set_num_threads(1)
        worker = Worker(sources)
        while (job := jobs.get()) is not None and not stop.is_set():
            part, first, last = job
            told = 0

            def on_unit(unit: int, talks: int = last - first) -> None:
                nonlocal told
                if stop.is_set() or os.getppid() != parent:  # nobody is left to tell
                    raise _Stopped
                if (unit + 1) % _TELL == 0:
                    results.put(Progress(_TELL * talks))
                    told += _TELL * talks

            outcome = worker.play(part, first, last, on_unit)
            results.put(Progress((last - first) * part.units - told))
            results.put(outcome)
    except _Stopped:
        pass
    except BaseException:
        results.put(traceback.format_exc())
    finally:
        if stop.is_set() or os.getppid() != parent:
            results.cancel_join_thread()
