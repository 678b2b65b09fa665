"""Conversations through the real engines and the serving runtime, many sessions in lockstep and in this process.

The thinker and the performer are the ones that Triton runs: page tables, retention, batching, scheduler and noise are
all theirs. Only the wire and the clock are left out, so that minutes of conversation take seconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np

from engine_builder.training.closed_loop import Performance
from engine_builder.training.conversation import Conversation
from engine_builder.training.words import PERSONA_PROMPT
from triton_models.runtime import retention
from triton_models.runtime.costs import CostTable
from triton_models.runtime.engine import EngineSet
from triton_models.runtime.kv_cache import BlockManager
from triton_models.runtime.kv_pool import KVPool
from triton_models.runtime.messages import (
    CloseJob,
    OpenJob,
    PerceiveJob,
    PerformJob,
    PerformResult,
    RenderJob,
    RenderResult,
    SessionError,
    ThinkJob,
    ThinkResult,
)
from triton_models.runtime.performer import Performer
from triton_models.runtime.scheduler import StepScheduler
from triton_models.runtime.thinker import Thinker
from triton_models.runtime.tokenizer import TextTokenizer

T = TypeVar("T")
STEPS = ("perceive", "think", "perform", "render")
PAGE_TOKENS = 16
DEFAULT_RETENTION: object = {
    "window": {"sink": 0, "recent": 16}
}  # the window that the shipped checkpoint is trained with


class Stage:
    """One thinker and one performer over one pool, for conversations of up to `units` units."""

    def __init__(
        self,
        engine_dir: Path,
        sessions: int,
        units: int,
        keep: object = DEFAULT_RETENTION,
        steps: int | None = None,
        threads: int = 1,
    ) -> None:
        self.engines = EngineSet.load(engine_dir, STEPS, threads)
        self.config = self.engines.config
        self.keep, self.steps = keep, steps or self.config.solver.steps
        policy = retention.parse(keep)
        pages = retention.pages_needed(policy, self.config, prompt_tokens=8, page_tokens=PAGE_TOKENS, units=units)
        if pages is None:
            raise ValueError(f"retention: {keep!r} has no bound for {units} units")
        total = 1 + sessions * pages
        self._pool = KVPool.create(f"eval-{os.getpid()}-{id(self)}", self.config, total, PAGE_TOKENS)
        tokenizer = TextTokenizer.load(self.engines.tokenizer_path, self.config.language)
        self._thinker = Thinker(self.engines, self._pool, BlockManager(total, PAGE_TOKENS), tokenizer)
        costs = CostTable.linear({"perform": (1.0, 1.0)})
        self._performer = Performer(
            self.engines, self._pool, StepScheduler(costs, self.engines.max_batch, degrade=False)
        )

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thinker.close_all()
        self._thinker.check_integrity()
        self._pool.close()
        self._pool.unlink()

    def run(
        self, conversations: list[Conversation], progress: Callable[[int], None] | None = None
    ) -> list[Performance]:
        """Plays conversations of one length side by side; raises SessionError if the runtime refuses a unit."""
        names = [f"talk-{i}" for i in range(len(conversations))]
        for i, (name, talk) in enumerate(zip(names, conversations, strict=True)):
            prompt = PERSONA_PROMPT[talk.scenario.language]
            self._thinker.open(OpenJob(name, 0, prompt=prompt, seed=1000 + i, retention=self.keep))
        units = len(conversations[0].state)
        states = np.zeros((len(names), units), dtype=np.int64)
        words: list[list[list[int]]] = [[] for _ in names]
        pcm: list[list[np.ndarray]] = [[] for _ in names]
        frames: list[list[np.ndarray]] = [[] for _ in names]
        for unit in range(units):
            thoughts = self._think(names, conversations, unit)
            rendered = self._render(self._perform(thoughts))
            for i, (thought, shown) in enumerate(zip(thoughts, rendered, strict=True)):
                states[i, unit] = self.config.language.states.index(thought.state)
                words[i].append(list(thought.slots[1:]))
                pcm[i].append(shown.pcm)
                frames[i].append(shown.frames)
            if progress is not None:
                progress(unit)
        for name in names:
            self._thinker.close(CloseJob(name, 0))
        return [Performance(states[i], words[i], np.stack(pcm[i]), np.stack(frames[i])) for i in range(len(names))]

    def _think(self, names: list[str], talks: list[Conversation], unit: int) -> list[ThinkResult]:
        jobs = []
        for name, talk in zip(names, talks, strict=True):
            seen = PerceiveJob(name, 0, unit, talk.user_pcm[unit], talk.camera[unit])
            jobs.append(ThinkJob(name, 0, unit, text=talk.scenario.typed.get(unit, ""), perceive=seen))
        return [_checked(result) for result in self._thinker.think(jobs)]

    def _perform(self, thoughts: list[ThinkResult]) -> list[PerformResult]:
        later = time.monotonic_ns() + 3_600_000_000_000
        for t in thoughts:
            self._performer.join(PerformJob(t.session, t.epoch, t.unit, t.seed, self.steps, later, t.origin, t.history))
        done: dict[str, PerformResult] = {}
        while self._performer.pending:
            for job, outcome in self._performer.tick():
                done[job.session] = _checked(outcome)
        return [done[t.session] for t in thoughts]

    def _render(self, solved: list[PerformResult]) -> list[RenderResult]:
        jobs = [RenderJob(s.session, s.epoch, s.unit, s.z_video, s.z_audio) for s in solved]
        return [_checked(result) for result in self._thinker.render(jobs)]


def _checked(result: T | SessionError) -> T:
    if isinstance(result, SessionError):
        raise result
    return result
