"""Thinker and performer in one process over one pool, without Triton: for tests, evaluation and benchmarks.

    with LocalRuntime.load(engine_dir) as runtime:
        session = await runtime.open(prompt="..", seed=1)
        output = await session.step(pcm, frames, text="hello")

The workers are the ones that serve; only the way between them is shorter. Sessions that are stepped concurrently share
batches. Nothing paces the units: they run as fast as the engines do.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine_builder.config import UNIT_MS

from ..runtime.budget.costs import CostTable
from ..runtime.engines.engine import PERFORMER_STEPS, THINKER_STEPS, EngineSet
from ..runtime.engines.tokenizer import TextTokenizer
from ..runtime.kv.pages import BlockManager
from ..runtime.messages import (
    CloseJob,
    Float32,
    OpenJob,
    PerceiveJob,
    PerformJob,
    PerformResult,
    SessionError,
    ThinkJob,
    ThinkResult,
    UInt8,
)
from ..runtime.performer.performer import Performer
from ..runtime.performer.renderer import Renderer
from ..runtime.performer.scheduler import StepScheduler
from ..runtime.performer.worker import PerformerWorker
from ..runtime.thinker.thinker import Thinker
from ..runtime.thinker.worker import ThinkerWorker
from ..runtime.worker import Job
from .load import load_engines

DEFAULT_PAGES = 1024
DEFAULT_PAGE_TOKENS = 16

_numbers = itertools.count()


@dataclass(frozen=True)
class UserUnit:
    """160 ms of a user: pcm float32 [N], frames uint8 [4, H, W, 3], typed text."""

    pcm: Float32
    frames: UInt8
    text: str = ""


@dataclass(frozen=True)
class AgentUnit:
    """160 ms of the agent. `steps`: solver steps that ran; `ms`: perceive, think, queue, perform, render, total."""

    unit: int
    state: str
    text: str
    slots: tuple[int, ...]
    pcm: Float32
    frames: UInt8
    z_video: Float32
    z_audio: Float32
    steps: int
    ms: dict[str, float]


class LocalRuntime:
    """Both workers over a private pool. Use it as a context manager, or call `start` and `close`."""

    def __init__(
        self,
        engines: EngineSet,
        *,
        pages: int = DEFAULT_PAGES,
        page_tokens: int = DEFAULT_PAGE_TOKENS,
        costs: CostTable | None = None,
        scheduler: StepScheduler | None = None,
    ) -> None:
        """costs: measured costs make the scheduler skip solver steps when late; without them it never does
        scheduler: another batching policy with the interface of `StepScheduler`
        """
        self.config = engines.config
        name = f"wst-local-{os.getpid()}-{next(_numbers)}"
        self.pool = engines.link.create(name, self.config, pages, page_tokens)
        try:
            self.blocks = BlockManager(pages, page_tokens)
            tokenizer = TextTokenizer.load(engines.tokenizer_path, self.config.language)
            self.thinker = Thinker(engines, self.pool, self.blocks, tokenizer)
            # Calls that cost nothing never make a neighbour late, so every tick takes all rows that fit.
            table = costs or CostTable.linear({"perform": (0.0, 0.0)})
            if scheduler is None:
                scheduler = StepScheduler(table, engines.max_batch, degrade=costs is not None)
            self.performer = Performer(engines, self.pool, scheduler)
            self.think_worker = ThinkerWorker(self.thinker)
            self.perform_worker = PerformerWorker(self.performer, Renderer(engines, self.performer.metrics))
        except BaseException:
            self._free_pool()
            raise

    @classmethod
    def load(cls, engine_dir: Path, *, threads: int = 1, device: str = "", **options: Any) -> LocalRuntime:
        """Loads a verified engine directory (`device`: see `service.load`); `options` as for the constructor."""
        return cls(load_engines(engine_dir, (*THINKER_STEPS, *PERFORMER_STEPS), threads, device), **options)

    def start(self) -> None:
        self.think_worker.start()
        self.perform_worker.start()

    def close(self) -> None:
        """Stops the workers, which fails what is under way, and frees the pool."""
        self.perform_worker.stop()
        self.think_worker.stop()
        self.thinker.close_all()
        self._free_pool()

    def __enter__(self) -> LocalRuntime:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def open(
        self,
        *,
        prompt: str = "",
        seed: int = 0,
        retention: object = "full",
        steps: int | None = None,
        name: str | None = None,
    ) -> LocalSession:
        """Opens a session; `steps` are solver steps a unit (None: the model's). Raises SessionError."""
        session = LocalSession(
            self, name or f"local-{next(_numbers)}", next(_numbers), steps or self.config.solver.steps
        )
        await self.call_thinker(OpenJob(session.name, session.epoch, prompt, seed, retention))
        return session

    async def call_thinker(self, job: Job) -> Any:
        """Runs one job; with `call_performer`, what `Duplex` takes to serve sessions over this runtime."""
        return await asyncio.wrap_future(self.think_worker.submit(job))

    async def call_performer(self, job: Job) -> Any:
        return await asyncio.wrap_future(self.perform_worker.submit(job))

    def converse(self, units: Iterable[UserUnit], **options: Any) -> list[AgentUnit]:
        """One whole session, start to end, for callers without an event loop; `options` as for `open`."""

        async def run() -> list[AgentUnit]:
            async with await self.open(**options) as session:
                return [await session.step(unit.pcm, unit.frames, unit.text) for unit in units]

        return asyncio.run(run())

    def stats(self) -> dict[str, float]:
        """Counters and timings of both roles, names prefixed with `thinker.` and `performer.`."""
        roles = {"thinker": self.thinker.stats(), "performer": self.performer.stats()}
        return {f"{role}.{name}": value for role, values in roles.items() for name, value in values.items()}

    def _free_pool(self) -> None:
        self.pool.close()
        self.pool.unlink()


class LocalSession:
    """One conversation of a `LocalRuntime`. A unit that failed or was cancelled half-way ends it: close it then."""

    def __init__(self, runtime: LocalRuntime, name: str, epoch: int, steps: int) -> None:
        self.name, self.epoch, self.steps = name, epoch, steps
        self.unit = 0  # the next one
        self._z: tuple[Float32 | None, Float32 | None] = (None, None)  # of the unit before
        self._runtime = runtime

    async def step(self, pcm: Float32, frames: UInt8, text: str = "") -> AgentUnit:
        """One user unit in, one agent unit out. Raises SessionError."""
        begin = time.monotonic_ns()
        unit = self.unit
        heard = PerceiveJob(self.name, self.epoch, unit, pcm, frames)
        thought: ThinkResult = await self._runtime.call_thinker(
            ThinkJob(self.name, self.epoch, unit, text, heard, *self._z)
        )
        performed: PerformResult = await self._runtime.call_performer(
            PerformJob(
                session=self.name,
                epoch=self.epoch,
                unit=unit,
                seed=thought.seed,
                steps=self.steps,
                deadline_ns=begin + UNIT_MS * 1_000_000,
                origin=thought.origin,
                history=thought.history,
            )
        )
        if performed.pcm is None or performed.frames is None:
            raise SessionError("INTERNAL", f"unit {unit}: expected pcm and frames of the performer, got none")
        self._z = performed.z_video, performed.z_audio
        self.unit += 1
        total = (time.monotonic_ns() - begin) / 1e6
        return AgentUnit(
            unit=unit,
            state=thought.state,
            text=thought.text,
            slots=thought.slots,
            pcm=performed.pcm,
            frames=performed.frames,
            z_video=performed.z_video,
            z_audio=performed.z_audio,
            steps=performed.steps,
            ms={**thought.ms, **performed.ms, "total": total},
        )

    async def close(self) -> None:
        """Frees everything; twice is no error. The performer lets go before the pages can have another owner."""
        job = CloseJob(self.name, self.epoch)
        await self._runtime.call_performer(job)
        await self._runtime.call_thinker(job)

    async def __aenter__(self) -> LocalSession:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
