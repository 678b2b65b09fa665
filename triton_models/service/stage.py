"""A stage: one process on one device, with its engines, its KV pool, and the thinker, the performer or both.

    duplex --think job--> thinker --KV slice, by a function call--> performer --> solving
           --perform job--> the result of what is being solved

With both roles here a think job says how its unit is to be solved, so that the solver starts when the last K/V of the
unit is written; the perform job that follows only waits for it, and no page is ever named in a message. With one role
the thinker's answer says where the history is, under a seal, and the perform job brings that along.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runtime.budget.admission import usual_history
from ..runtime.budget.costs import Cost, CostTable, measure, think_curve
from ..runtime.budget.probe import SolverCall, load_costs, scattered_view
from ..runtime.duplex.options import OptionLimits
from ..runtime.engines.engine import PERFORMER_STEPS, THINKER_STEPS, EngineError, EngineSet
from ..runtime.engines.solver import Solver
from ..runtime.engines.target import Role
from ..runtime.engines.tokenizer import TextTokenizer
from ..runtime.kv.pages import BlockManager
from ..runtime.kv.pool import Pool
from ..runtime.messages import CloseJob, Job, OpenJob, PerformJob, SessionError, ThinkResult
from ..runtime.metrics import Metrics
from ..runtime.performer.performer import Performer
from ..runtime.performer.renderer import Renderer
from ..runtime.performer.scheduler import StepScheduler
from ..runtime.performer.worker import PerformerWorker
from ..runtime.thinker.thinker import Thinker
from ..runtime.thinker.worker import ThinkerWorker
from ..runtime.worker import Worker
from .load import load_engines
from .settings import StageSettings

STEPS: dict[Role, tuple[str, ...]] = {
    "both": (*THINKER_STEPS, *PERFORMER_STEPS),
    "thinker": THINKER_STEPS,
    "performer": PERFORMER_STEPS,
}
# A session performs one unit at a time, but its next one may come before the worker has heard of its end.
UNITS_PER_SESSION = 2


@dataclass(frozen=True)
class Part:
    """A role as operators see it."""

    worker: Worker
    figures: Callable[[], dict[str, float]]
    metrics: Metrics
    fault: Callable[[], str] = str  # what is wrong with the processes that work for it, or nothing

    def status(self) -> dict[str, object]:
        return {"alive": self.worker.alive, "fault": self.fault(), **self.figures()}


class Stage:
    """Runs jobs from `start` to `stop`. `submit` may be called from any thread."""

    def __init__(
        self,
        engines: EngineSet,
        role: Role = "both",
        *,
        pages: int,
        page_tokens: int,
        name: str = "",
        max_sessions: int = 1024,
        scheduler: Callable[[Pool, Solver], StepScheduler],
        think_costs: list[float] | None = None,
        key: bytes = b"",
        orphan_seconds: float = 3600.0,
    ) -> None:
        """name: of the KV link between two stages
        key: of the seals of both
        orphan_seconds: a session of which nothing is heard for so long has no owner any more, and is closed
        """
        config = engines.config
        self._key, self._orphan_seconds = key, orphan_seconds
        self._thinker: ThinkerWorker | None = None
        self._performer: PerformerWorker | None = None
        self.parts: dict[str, Part] = {}
        self._lock = threading.Lock()
        self._heard: dict[str, tuple[int, float]] = {}  # of each session: epoch, when its last job came
        self._solving: dict[str, tuple[int, int, Future[Any]]] = {}  # what was handed over: epoch, unit, its result
        self._closing: dict[str, list[int]] = {}  # closes under way, by epoch: the performer has let go of a session
        self._target = engines.target
        self.pool = engines.target.pool(role, name, config, pages, page_tokens)
        try:
            solver = None
            if role != "performer":
                tokenizer = TextTokenizer.load(engines.tokenizer_path, config.language)
                self.blocks = BlockManager(pages, page_tokens)
                handing, sealing = (self._hand_over, None) if role == "both" else (None, self._seal)
                thinker = Thinker(engines, self.pool, self.blocks, tokenizer, max_sessions, handing, sealing)
                self._thinker = ThinkerWorker(thinker, costs=think_costs)
                self.parts["thinker"] = Part(self._thinker, thinker.stats, thinker.metrics)
            if role != "thinker":
                slots = max(UNITS_PER_SESSION * max_sessions, engines.max_batch)
                solver = engines.target.solver(engines["perform"], self.pool, slots)
                performer = Performer(engines, self.pool, scheduler(self.pool, solver), solver=solver)
                renderer = Renderer(engines, performer.metrics, max_sessions)
                self._performer = PerformerWorker(performer, renderer)
                self.parts["performer"] = Part(self._performer, performer.stats, performer.metrics, self._target.fault)
            engines.target.rehearse(engines, self.pool, solver)
        except BaseException:
            self._free()
            raise

    @classmethod
    def of(cls, settings: StageSettings, key: bytes) -> Stage:
        """The stage of a server: loads its engines, and what their calls cost."""
        directory = Path(settings.engines)
        key_file = Path(settings.trusted_key) if settings.trusted_key else None
        engines = load_engines(directory, STEPS[settings.role], settings.threads, settings.device, key_file)
        if engines.manifest is None:
            raise EngineError(f"{directory}: expected engines with their manifest")
        retention = OptionLimits.of(engines.manifest).retention
        usual = usual_history(engines.config, retention, settings.pages, settings.page_tokens)
        costs = load_costs(directory, settings.threads, settings.device)

        def scheduler(pool: Pool, solver: Solver) -> StepScheduler:
            table = costs or _perform_costs(engines, pool, solver)
            return StepScheduler(table, engines.max_batch, history=usual, degrade=settings.degrade)

        return cls(
            engines,
            settings.role,
            pages=settings.pages,
            page_tokens=settings.page_tokens,
            name=settings.link,
            max_sessions=settings.max_sessions,
            scheduler=scheduler,
            think_costs=costs and think_curve(costs, engines.max_batch, usual, engines.config.language.slots),
            key=key,
            orphan_seconds=settings.orphan_seconds,
        )

    def start(self) -> None:
        for part in self.parts.values():
            part.worker.start()

    def stop(self) -> None:
        """Ends the threads, which fails what is under way, and frees the pool."""
        for part in self.parts.values():
            part.worker.stop()
        self._free()

    def _free(self) -> None:
        self._target.close()
        self.pool.close()

    def submit(self, job: Job) -> Future[Any]:
        """Runs a job. Its future ends in the result or in a SessionError."""
        if (
            isinstance(job, PerformJob)
            and self._thinker is None
            and (job.history is None or job.seal != self._seal(job))
        ):
            return _failed("INVALID_ARGUMENT", f"history: expected one under the seal of its owner, unit {job.unit}")
        with self._lock:
            if isinstance(job, OpenJob) or self._thinker is None or job.session in self._heard:
                latest = max(job.epoch, self._heard.get(job.session, (-1, 0.0))[0])  # a close of it closes all before
                self._heard[job.session] = latest, time.monotonic()
            if isinstance(job, PerformJob) and self._thinker is not None:
                return self._handed_over(job)
            if not isinstance(job, CloseJob):
                worker = self._performer if isinstance(job, PerformJob) else self._thinker
                if worker is None:
                    return _failed("INTERNAL", f"this stage takes no {type(job).__name__}")
                return worker.submit(job)  # before a close can come between
        return self._close(job)

    def reap(self) -> None:
        """Closes sessions that nobody owns: their last job is long ago, or they were opened for nobody."""
        limit = time.monotonic() - self._orphan_seconds
        for session, (epoch, at) in list(self._heard.items()):
            if at < limit:
                self.submit(CloseJob(session, epoch))

    # -- between the two roles ---------------------------------------------------------------------------------
    def _hand_over(self, job: PerformJob) -> None:
        """In the thinker's thread: its last K/V is written. What comes of it waits for the perform job."""
        with self._lock:  # so that a close comes before it, and it is dropped, or behind it
            if self._performer is not None and job.epoch > max(self._closing.get(job.session, [-1])):
                self._solving[job.session] = job.epoch, job.unit, self._performer.submit(job)

    def _handed_over(self, job: PerformJob) -> Future[Any]:
        epoch, unit, solving = self._solving.get(job.session, (-1, -1, None))
        if job.history is not None or solving is None or (epoch, unit) != (job.epoch, job.unit):
            return _failed("NOT_FOUND", f"unit {job.unit} of session {job.session!r} was not handed over here")
        del self._solving[job.session]
        return solving

    def _close(self, job: CloseJob) -> Future[Any]:
        """In the performer first, for it reads the pages that the thinker frees."""
        closed: Future[Any] = Future()

        def think(_: object = None) -> None:
            if self._thinker is None:
                finish()
            else:
                self._thinker.submit(job).add_done_callback(finish)

        def finish(_: object = None) -> None:
            with self._lock:
                self._closing[job.session].remove(job.epoch)
                if not self._closing[job.session]:
                    del self._closing[job.session]
                # An older close leaves a session open; and one that was opened since may be open.
                if heard is not None and heard[0] <= job.epoch and self._heard.get(job.session) is heard:
                    del self._heard[job.session]
            closed.set_result(None)

        with self._lock:
            heard = self._heard.get(job.session)
            self._closing.setdefault(job.session, []).append(job.epoch)
            self._solving.pop(job.session, None)
            leaving = self._performer.submit(job) if self._performer is not None else None
        if leaving is None:
            think()
        else:
            leaving.add_done_callback(think)
        return closed

    def _seal(self, of: ThinkResult | PerformJob) -> bytes:
        """Vouches for the history of a unit: pages are taken from nobody but their owner."""
        if of.history is None:
            return b""
        unit = f"{of.epoch} {of.unit} {of.session}".encode()
        pages = of.history.page_ids.tobytes(), of.history.ranges.tobytes()
        return hashlib.blake2b(b"\0".join((*pages, unit)), key=self._key, digest_size=16).digest()


def _failed(code: str, message: str) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(SessionError(code, message))
    return future


def _perform_costs(engines: EngineSet, pool: Pool, solver: Solver) -> CostTable:
    """A short measurement over a short history, where nobody measured before the start."""
    call = SolverCall(engines.config, solver, scattered_view(pool, pages=1))
    costs: list[Cost] = []
    for batch in sorted({1, min(2, engines.max_batch), engines.max_batch}):
        costs += measure("perform", [batch], call, repeats=3)
    call.close()
    return CostTable(costs)
