"""A server without Triton: the same `Duplex` over the same stage, with direct calls. For tests, evaluation, benches.

    with LocalRuntime.load(engine_dir) as runtime:
        session = await runtime.open(prompt="..", seed=1)
        output = await session.step(pcm, frames, text="hello")

Sessions that are stepped concurrently share batches. Nothing paces the units: they run as fast as the engines do.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import structs

from engine_builder.manifest import ENCODE

from ..runtime.budget.costs import CostTable
from ..runtime.duplex.contract import UnitRequest, UnitResponse
from ..runtime.duplex.duplex import Duplex
from ..runtime.duplex.options import OptionLimits
from ..runtime.engines.engine import EngineSet
from ..runtime.engines.tokenizer import TextTokenizer
from ..runtime.messages import (
    CloseJob,
    Float32,
    Job,
    PerformJob,
    PerformResult,
    SessionError,
    ThinkJob,
    ThinkResult,
    UInt8,
)
from ..runtime.performer.scheduler import StepScheduler
from .load import load_engines
from .stage import STEPS, Stage

DEFAULT_PAGES = 1024
DEFAULT_PAGE_TOKENS = 16
MAX_SESSIONS = 64
IDLE_NS = 3600 * 10**9  # nobody is at the other end who could have gone

_numbers = itertools.count()


@dataclass(frozen=True)
class UserUnit:
    """160 ms of a user: pcm float32 [N], frames uint8 [4, H, W, 3], typed text."""

    pcm: Float32
    frames: UInt8
    text: str = ""


@dataclass(frozen=True)
class AgentUnit:
    """160 ms of the agent. `heard`: words of the user; `steps`: solver steps that ran; `ms`: perceive, think, queue,
    perform, render, total."""

    unit: int
    state: str
    text: str
    heard: str
    slots: tuple[int, ...]
    pcm: Float32
    frames: UInt8
    z_video: Float32
    z_audio: Float32
    steps: int
    ms: dict[str, float]


class LocalRuntime:
    """A `Duplex` and its stage. Use it as a context manager, or call `start` and `close`."""

    def __init__(
        self,
        engines: EngineSet,
        *,
        pages: int = DEFAULT_PAGES,
        page_tokens: int = DEFAULT_PAGE_TOKENS,
        costs: CostTable | None = None,
        scheduler: StepScheduler | None = None,
        **duplex: Any,
    ) -> None:
        """costs: measured costs make the scheduler skip solver steps when late; without them it never does
        scheduler: another batching policy with the interface of `StepScheduler`
        duplex: as for `Duplex`, admission for one
        """
        self.config = config = engines.config
        # Calls that cost nothing never make a neighbour late, so every tick takes all rows that fit.
        table = costs or CostTable.linear({"perform": (0.0, 0.0)})
        policy = scheduler or StepScheduler(table, engines.max_batch, degrade=costs is not None)
        self.stage = Stage(engines, pages=pages, page_tokens=page_tokens, scheduler=lambda *_: policy)
        self.pool, self.blocks = self.stage.pool, self.stage.blocks
        self._sessions: dict[str, LocalSession] = {}
        self._tokenizer = TextTokenizer.load(engines.tokenizer_path, config.language)
        given: dict[str, Any] = {
            "limits": OptionLimits(
                config.solver.steps, config.solver.max_steps, model=config, encodes=ENCODE in engines.engines
            ),
            "degrade": False,
            "max_sessions": MAX_SESSIONS,
            "max_in_flight": 2,
            "ahead_units": None,
            "idle_ns": IDLE_NS,
            "grace_ns": 0,
        }
        self.duplex = Duplex(config, self._call, self._call, self._tokens, **(given | duplex))

    @classmethod
    def load(cls, engine_dir: Path, *, threads: int = 1, device: str = "", **options: Any) -> LocalRuntime:
        """Loads a verified engine directory (`device`: see `service.load`); `options` as for the constructor."""
        return cls(load_engines(engine_dir, STEPS["both"], threads, device), **options)

    def start(self) -> None:
        self.stage.start()

    def close(self) -> None:
        """Ends the sessions and the threads, which fails what is under way, and frees the pool."""
        self.duplex.abandon("the runtime is shutting down")
        self.duplex.stop()
        self.stage.stop()

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
        persona: object = None,
    ) -> LocalSession:
        """A session, which begins with its first unit; `steps` are solver steps a unit (None: the model's)."""
        options: dict[str, object] = {"seed": seed, "retention": retention, "hold_open": True}
        options |= {"prompt": prompt} if persona is None else {"persona": persona}
        return LocalSession(self, name or f"local-{next(_numbers)}", options, steps or self.config.solver.steps)

    def converse(self, units: Iterable[UserUnit], **options: Any) -> list[AgentUnit]:
        """One whole session, start to end, for callers without an event loop; `options` as for `open`."""

        async def run() -> list[AgentUnit]:
            async with await self.open(**options) as session:
                return [await session.step(unit.pcm, unit.frames, unit.text) for unit in units]

        return asyncio.run(run())

    def stats(self) -> dict[str, float]:
        """Counters and timings of both roles, names prefixed with `thinker.` and `performer.`."""
        return {f"{r}.{name}": v for r, part in self.stage.parts.items() for name, v in part.figures().items()}

    def _tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(text))

    def _call(self, job: Job) -> Any:
        """What BLS is in a server. Keeps of a unit what no client is told, and hears of the end of a session."""
        session = self._sessions.get(job.session.partition(":")[2].rpartition("#")[0])
        if session is not None and isinstance(job, ThinkJob | PerformJob):
            job = structs.replace(job, steps=session.steps)
        try:
            result = self.stage.submit(job).result()
        finally:
            if session is not None and isinstance(job, CloseJob):
                session.closes.release()
        if session is not None and isinstance(result, ThinkResult):
            session.thought = result
        if session is not None and isinstance(result, PerformResult):
            session.solved = result
        return result


class LocalSession:
    """One conversation of a `LocalRuntime`, and the `Reply` to all its units. A unit that was cancelled half-way leaves
    it out of step: close it then. `steps` may change between units."""

    def __init__(self, runtime: LocalRuntime, key: str, options: dict[str, object], steps: int) -> None:
        self.key, self.steps = key, steps
        self.unit = 0  # the next one
        self.thought: ThinkResult | None = None  # of the last unit
        self.solved: PerformResult | None = None
        self._runtime, self._options = runtime, options
        self.closes = threading.Semaphore(0)  # close calls that came back: two, one a role
        self._answer: Future[UnitResponse] = Future()
        self._begun = self._gone = False
        runtime._sessions[self.key] = self

    async def step(self, pcm: Float32, frames: UInt8, text: str = "") -> AgentUnit:
        """One user unit in, one agent unit out. Raises SessionError."""
        start, self._answer = self.unit == 0, Future()
        options = json.dumps(self._options | {"solver_steps": self.steps}).encode() if start else b""
        request = UnitRequest(self.key, start, False, self.unit, pcm, frames, text.encode(), options)
        self._runtime.duplex.serve(request, self)
        self._begun |= self._runtime.duplex.table.get(self.key) is not None
        answer = await asyncio.wrap_future(self._answer)
        if self.thought is None or self.solved is None:
            raise SessionError("INTERNAL", f"unit {self.unit}: expected the results of a stage, got none")
        self.unit += 1
        return AgentUnit(
            unit=answer.unit,
            state=answer.state,
            text=answer.text,
            heard=answer.heard,
            slots=self.thought.slots,
            pcm=answer.pcm,
            frames=answer.frames,
            z_video=self.solved.z_video,
            z_audio=self.solved.z_audio,
            steps=self.solved.steps,
            ms=answer.info["ms"],
        )

    async def close(self) -> None:
        """Goes away, as a client does, and waits until everything is freed; twice is no error."""
        begun, self._begun, self._gone = self._begun, False, True
        if begun:
            self._runtime.duplex.poll()
            await asyncio.get_running_loop().run_in_executor(None, self._freed)
        self._runtime._sessions.pop(self.key, None)

    def _freed(self) -> None:
        for _ in range(2):
            self.closes.acquire()

    async def __aenter__(self) -> LocalSession:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    # -- Reply -------------------------------------------------------------------------------------------------
    def send(self, response: UnitResponse) -> None:
        if not self._answer.done():
            self._answer.set_result(response)

    def fail(self, error: SessionError) -> None:
        if not self._answer.done():
            self._answer.set_exception(error)

    def finish(self) -> None:
        """The session is over, or this unit: `send` and `fail` have said so."""

    def cancelled(self) -> bool:
        return self._gone
