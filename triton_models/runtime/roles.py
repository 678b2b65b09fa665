"""Builds a thinker or a performer from the parameters of its model configuration: engines, KV pool, worker thread.

The thinker makes the pool of its server and the performer, which may start first, waits for it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from engine_builder.manifest import Manifest

from .capacity import usual_history
from .cost_probe import load_costs, step_inputs
from .costs import Cost, CostTable, measure
from .engine import PERFORMER_STEPS, THINKER_STEPS, EngineSet
from .history import page_multiple
from .kv_cache import BlockManager
from .kv_pool import KVPool, PoolError
from .options import OptionLimits
from .performer import Performer
from .scheduler import StepScheduler
from .settings import RoleSettings
from .thinker import Thinker
from .tokenizer import TextTokenizer
from .worker import PerformerWorker, ThinkerWorker

POOL_WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class ThinkerRole:
    worker: ThinkerWorker
    thinker: Thinker
    pool: KVPool

    @classmethod
    def start(cls, settings: RoleSettings) -> ThinkerRole:
        """Loads perceive, think and render, makes the pool and starts the worker."""
        engines = EngineSet.load(Path(settings.engines), THINKER_STEPS, settings.threads)
        tokenizer = TextTokenizer.load(engines.tokenizer_path, engines.config.language)
        pool = KVPool.create(settings.pool, engines.config, settings.pages, settings.page_tokens)
        blocks = BlockManager(settings.pages, settings.page_tokens)
        thinker = Thinker(engines, pool, blocks, tokenizer, settings.max_sessions)
        worker = ThinkerWorker(thinker)
        worker.start()
        return cls(worker, thinker, pool)

    def status(self) -> dict[str, object]:
        return {"alive": self.worker.alive, **self.thinker.stats()}

    def stop(self) -> None:
        self.worker.stop()
        self.pool.close()
        self.pool.unlink()


@dataclass(frozen=True)
class PerformerRole:
    worker: PerformerWorker
    performer: Performer
    pool: KVPool

    @classmethod
    def start(cls, settings: RoleSettings) -> PerformerRole:
        """Loads perform, maps the thinker's pool and starts the worker."""
        engines = EngineSet.load(Path(settings.engines), PERFORMER_STEPS, settings.threads)
        pool = _await_pool(settings.pool, engines)
        directory, tokens = Path(settings.engines), settings.page_tokens
        costs = load_costs(directory, settings.threads) or _perform_costs(engines, tokens)
        usual = usual_history(engines.config, OptionLimits.of(Manifest.load(directory)).retention)
        scheduler = StepScheduler(costs, engines.max_batch, history=usual, degrade=settings.degrade)
        performer = Performer(engines, pool, scheduler)
        worker = PerformerWorker(performer)
        worker.start()
        return cls(worker, performer, pool)

    def status(self) -> dict[str, object]:
        return {"alive": self.worker.alive, **self.performer.stats()}

    def stop(self) -> None:
        self.worker.stop()
        self.pool.close()


def _await_pool(name: str, engines: EngineSet) -> KVPool:
    deadline = time.monotonic() + POOL_WAIT_SECONDS
    while True:
        try:
            return KVPool.open(name, engines.config)
        except PoolError:  # not there yet, or not complete
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _perform_costs(engines: EngineSet, page_tokens: int) -> CostTable:
    """A short measurement, where nobody measured before the start."""
    costs: list[Cost] = []
    panel = page_multiple(page_tokens, engines.config.backbone.head_dim) * page_tokens
    for batch in sorted({1, 2, engines.max_batch}):
        inputs = step_inputs(engines.config, engines.state_sizes, "perform", batch, panel, page_tokens)
        costs += measure("perform", [batch], lambda _, inputs=inputs: engines["perform"].run(inputs), repeats=3)
    return CostTable(costs)
