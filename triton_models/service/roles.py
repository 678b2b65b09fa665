"""Builds a thinker or a performer from the parameters of its model configuration: engines, KV pool, worker thread.

The thinker makes the pool of its server and the performer, which may start first, waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..runtime.budget.admission import usual_history
from ..runtime.budget.costs import Cost, CostTable, measure, think_curve
from ..runtime.budget.probe import SolverCall, load_costs, scattered_view
from ..runtime.duplex.options import OptionLimits
from ..runtime.engines.engine import PERFORMER_STEPS, THINKER_STEPS, EngineError, EngineSet
from ..runtime.engines.solver import Solver
from ..runtime.engines.tokenizer import TextTokenizer
from ..runtime.kv.hand_over import HandOverReceiver, HandOverSender
from ..runtime.kv.pages import BlockManager
from ..runtime.kv.pool import Pool
from ..runtime.performer.performer import Performer
from ..runtime.performer.renderer import Renderer
from ..runtime.performer.scheduler import StepScheduler
from ..runtime.performer.worker import PerformerWorker
from ..runtime.thinker.thinker import Thinker
from ..runtime.thinker.worker import ThinkerWorker
from .load import load_engines
from .settings import RoleSettings

# A session performs one unit at a time, but its next one may come before the worker has heard of its end.
UNITS_PER_SESSION = 2


@dataclass(frozen=True)
class ThinkerRole:
    worker: ThinkerWorker
    thinker: Thinker
    pool: Pool
    sender: HandOverSender

    @classmethod
    def start(cls, settings: RoleSettings) -> ThinkerRole:
        """Loads perceive and think, makes the pool and starts the worker."""
        directory = Path(settings.engines)
        engines = load_engines(directory, THINKER_STEPS, settings.threads, settings.device)
        if engines.manifest is None:
            raise EngineError(f"{directory}: expected engines with their manifest")
        tokenizer = TextTokenizer.load(engines.tokenizer_path, engines.config.language)
        pool = engines.link.create(settings.pool, engines.config, settings.pages, settings.page_tokens)
        engines.link.rehearse(engines, pool, None)
        blocks = BlockManager(settings.pages, settings.page_tokens)
        sender = HandOverSender(settings.pool)
        thinker = Thinker(engines, pool, blocks, tokenizer, settings.max_sessions, sender.send)
        curve = None
        if (costs := load_costs(directory, settings.threads, settings.device)) is not None:
            usual = usual_history(
                engines.config, OptionLimits.of(engines.manifest).retention, settings.pages, settings.page_tokens
            )
            curve = think_curve(costs, engines.max_batch, usual, engines.config.language.slots)
        worker = ThinkerWorker(thinker, costs=curve)
        worker.start()
        return cls(worker, thinker, pool, sender)

    def status(self) -> dict[str, object]:
        return {"alive": self.worker.alive, **self.thinker.stats()}

    def stop(self) -> None:
        self.worker.stop()
        self.sender.close()
        self.pool.close()
        self.pool.unlink()


@dataclass(frozen=True)
class PerformerRole:
    worker: PerformerWorker
    performer: Performer
    pool: Pool
    receiver: HandOverReceiver

    @classmethod
    def start(cls, settings: RoleSettings) -> PerformerRole:
        """Loads perform and render, maps the thinker's pool and starts the worker."""
        directory = Path(settings.engines)
        engines = load_engines(directory, PERFORMER_STEPS, settings.threads, settings.device)
        if engines.manifest is None:
            raise EngineError(f"{directory}: expected engines with their manifest")
        pool = engines.link.open(settings.pool, engines.config, settings.pages, settings.page_tokens)
        slots = max(UNITS_PER_SESSION * settings.max_sessions, engines.max_batch)
        solver = engines.link.solver(engines["perform"], pool, slots)
        engines.link.rehearse(engines, pool, solver)
        costs = load_costs(directory, settings.threads, settings.device) or _perform_costs(engines, pool, solver)
        usual = usual_history(
            engines.config, OptionLimits.of(engines.manifest).retention, settings.pages, settings.page_tokens
        )
        scheduler = StepScheduler(costs, engines.max_batch, history=usual, degrade=settings.degrade)
        performer = Performer(engines, pool, scheduler, solver=solver)
        worker = PerformerWorker(performer, Renderer(engines, performer.metrics, settings.max_sessions))
        receiver = HandOverReceiver(settings.pool, worker.hand_over)
        worker.start()
        receiver.start()
        return cls(worker, performer, pool, receiver)

    def status(self) -> dict[str, object]:
        return {"alive": self.worker.alive, **self.performer.stats()}

    def stop(self) -> None:
        self.receiver.stop()
        self.worker.stop()
        self.pool.close()
        self.pool.unlink()  # its own, if it has one


def _perform_costs(engines: EngineSet, pool: Pool, solver: Solver) -> CostTable:
    """A short measurement over a short history, where nobody measured before the start."""
    call = SolverCall(engines.config, solver, scattered_view(pool, pages=1))
    costs: list[Cost] = []
    for batch in sorted({1, min(2, engines.max_batch), engines.max_batch}):
        costs += measure("perform", [batch], call, repeats=3)
    call.close()
    return CostTable(costs)
