"""Builds a thinker or a performer from the parameters of its model configuration: engines, KV pool, worker thread.

The thinker makes the pool of its server and the performer, which may start first, waits for it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine_builder.layout import rope_tables

from .costs import Cost, CostTable, measure
from .engine import PERFORMER_STEPS, THINKER_STEPS, EngineSet
from .kv_cache import BlockManager
from .kv_pool import KVPool, PoolError
from .performer import Performer
from .scheduler import StepScheduler
from .settings import RoleSettings
from .thinker import Thinker
from .tokenizer import TextTokenizer
from .worker import PerformerWorker, ThinkerWorker

POOL_WAIT_SECONDS = 60.0
COSTS = "costs.csv"


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
        scheduler = StepScheduler(
            _perform_costs(Path(settings.engines), engines, pool), engines.max_batch, degrade=settings.degrade
        )
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


def _perform_costs(directory: Path, engines: EngineSet, pool: KVPool) -> CostTable:
    """`costs.csv` of the engine directory, or a short measurement with an empty history."""
    if (directory / COSTS).is_file():
        table = CostTable.load(directory / COSTS)
        if "perform" in table.steps:
            return table
    costs: list[Cost] = []
    for batch in sorted({1, 2, engines.max_batch}):
        inputs = _perform_inputs(engines, pool, batch)
        costs += measure("perform", [batch], lambda _, inputs=inputs: engines["perform"].run(inputs), repeats=3)
    return CostTable(costs)


def _perform_inputs(engines: EngineSet, pool: KVPool, batch: int) -> dict[str, np.ndarray]:
    config = engines.config
    video, audio = config.video, config.audio
    cos, sin = rope_tables(config.backbone, range(config.latent_tokens))
    return {
        "x_video": np.zeros((batch, video.tokens, video.latent_dim), np.float32),
        "x_audio": np.zeros((batch, audio.tokens, audio.latent_dim), np.float32),
        "tau": np.ones(batch, np.float32),
        "rope_cos": np.stack([cos] * batch),
        "rope_sin": np.stack([sin] * batch),
        "page_table": np.zeros((batch, 1), np.int64),
        "page_range": np.zeros((batch, 1, 2), np.int64),
        "k_pool": pool.k,
        "v_pool": pool.v,
    }
