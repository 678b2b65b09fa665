"""A stand-in for step engines: a few lines of numpy that keep the tensor contract of the four steps.

Every output of a row is a function of that row's inputs and of the K that its page table shows, computed row by row, so
that a leak between rows or sessions changes a number and batched must equal solo bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from duplex_bench import DuplexBench

from engine_builder.config import AudioConfig, BackboneConfig, LanguageConfig, ModelConfig, VideoConfig
from engine_builder.tokenizer import tiny_tokenizer
from triton_models.runtime.engines.engine import EngineSet
from triton_models.runtime.engines.tokenizer import TextTokenizer
from triton_models.runtime.kv.pages import BlockManager
from triton_models.runtime.kv.pool import HostPool
from triton_models.runtime.messages import (
    CloseJob,
    OpenJob,
    PerceiveJob,
    PerformJob,
    PerformResult,
    SessionError,
    ThinkJob,
    ThinkResult,
)
from triton_models.runtime.thinker.thinker import Thinker
from triton_models.runtime.worker import Worker

Tensors = dict[str, np.ndarray]

FAKE_CONFIG = ModelConfig(
    name="fake",
    audio=AudioConfig(latent_dim=3),
    video=VideoConfig(height=16, width=16, stride=16, latent_dim=2),
    language=LanguageConfig(slots=3, text_tokens=2),
    backbone=BackboneConfig(hidden_size=4, layers=2, heads=2, kv_heads=1, head_dim=4, intermediate_size=4),
)
PAGE_TOKENS = 4


@dataclass
class FakeEngine:
    """`spoil` may change the outputs of a call, `crash` is raised instead of making them; `batches` counts rows."""

    function: Callable[[Tensors], Tensors]
    spoil: Callable[[Tensors, Tensors], None] | None = None
    crash: Exception | None = None
    batches: list[int] = field(default_factory=list)

    def run(self, inputs: Tensors) -> Tensors:
        if self.crash is not None:
            raise self.crash
        rows = {len(value) for name, value in inputs.items() if not name.endswith("_pool")}
        assert len(rows) == 1, "all inputs have the same batch"
        self.batches.append(rows.pop())
        outputs = self.function(inputs)
        if self.spoil is not None:
            self.spoil(inputs, outputs)
        return outputs


def visible_sum(inputs: Tensors, b: int) -> float:
    """Exact sum of the K that row `b` may see, so that padding and order change nothing."""
    values: list[float] = []
    for page, (first, end) in zip(inputs["page_table"][b], inputs["page_range"][b], strict=True):
        values += inputs["k_pool"][0, page, first:end, 0, 0].tolist()
        assert np.isfinite(inputs["k_pool"][:, page]).all()
    return math.fsum(values)


def perceive(x: Tensors) -> Tensors:
    mean = x["pcm"].mean(axis=1) + x["state"][:, 0]
    e_audio = np.repeat(mean, 2 * 4).reshape(-1, 2, 4)
    e_video = np.repeat(x["frames"].mean(axis=(1, 2, 3, 4)).astype(np.float32) / 255, 4).reshape(-1, 1, 4)
    return {"e_audio": e_audio, "e_video": e_video, "state_out": (0.5 * mean)[:, None]}


def think(x: Tensors) -> Tensors:
    c = FAKE_CONFIG
    rows = len(x["ids"])
    parts = [x[name].mean(axis=2) for name in ("z_video", "z_audio", "e_video", "e_audio")]
    token = np.concatenate([*parts, x["ids"] / 1000], axis=1).astype(np.float32)  # [B, T]
    tokens = token.shape[1]
    assert x["block_mask"].shape == (rows, tokens, tokens)
    assert x["rope_cos"].shape == (rows, tokens, 2)
    assert x["block_mask"].diagonal(axis1=1, axis2=2).all()
    logits = np.empty((rows, c.language.vocab_size), np.float32)
    for b in range(rows):
        seen = math.fsum(token[b][x["block_mask"][b, -1]].tolist()) + visible_sum(x, b) + float(x["rope_sin"][b, -1, 0])
        logits[b] = np.cos(np.arange(1, c.language.vocab_size + 1) * (1.0 + seen))
        logits[b, c.language.eou_id] = 1.0 if math.sin(37 * seen) > 0.3 else -1.0
    k = np.broadcast_to(token[None, :, :, None, None], (c.backbone.layers, rows, tokens, 1, 4)).copy()
    v = np.broadcast_to(x["rope_cos"][None, :, :, None, :1], k.shape).copy()
    return {"logits": logits, "k_new": k, "v_new": v}


def perform(x: Tensors) -> Tensors:
    """Estimates z_0 as the visible sum, whatever the noise, so that the last step lands on it."""
    z0 = np.array([visible_sum(x, b) for b in range(len(x["tau"]))], dtype=np.float32)[:, None, None]
    tau = x["tau"][:, None, None]
    return {"velocity_video": (x["x_video"] - z0) / tau, "velocity_audio": (x["x_audio"] - z0 / 2) / tau}


def render(x: Tensors) -> Tensors:
    mean = x["z_audio"].mean(axis=(1, 2)) + x["state"][:, 0]
    pcm = np.repeat(mean, FAKE_CONFIG.audio.unit_samples).reshape(len(mean), -1)
    level = (np.abs(x["z_video"].mean(axis=(1, 2))) * 100 % 255).astype(np.uint8)
    frames = np.repeat(level, 4 * 16 * 16 * 3).reshape(-1, 4, 16, 16, 3)
    return {"pcm": pcm, "frames": frames, "state_out": (0.25 * mean)[:, None]}


def fake_engines(max_batch: int = 3) -> EngineSet:
    """A fresh set; `engines["think"]` and so on are `FakeEngine`s."""
    steps = {"perceive": perceive, "think": think, "perform": perform, "render": render}
    return EngineSet(
        config=FAKE_CONFIG,
        engines={name: FakeEngine(function) for name, function in steps.items()},
        state_sizes={"perceive": 1, "render": 1},
        max_batch=max_batch,
        tokenizer_path=Path("unused"),
    )


class Bench:
    """A thinker over fake engines with short-hands to drive it; jobs carry epoch 1 unless they say otherwise."""

    def __init__(self, pages: int, max_batch: int, **options: Any) -> None:
        self.config = FAKE_CONFIG
        self.engines = fake_engines(max_batch)
        self.pool = HostPool(FAKE_CONFIG, pages, PAGE_TOKENS)
        self.blocks = BlockManager(pages, PAGE_TOKENS)
        self.tokenizer = TextTokenizer(tiny_tokenizer(FAKE_CONFIG.language), FAKE_CONFIG.language)
        self.thinker = Thinker(self.engines, self.pool, self.blocks, self.tokenizer, **options)

    def fake(self, step: str) -> FakeEngine:
        engine = self.engines[step]
        assert isinstance(engine, FakeEngine)
        return engine

    def open(self, *sessions: str, prompt: str = "", retention: object = "full", seed: int = 0) -> None:
        for session in sessions:
            self.thinker.open(OpenJob(session, 1, prompt, seed, retention))

    def close(self, *sessions: str) -> None:
        for session in sessions:
            self.thinker.close(CloseJob(session, 1))

    def hear(self, session: str, unit: int, level: float = 0.1) -> PerceiveJob:
        pcm = np.full(self.config.audio.unit_samples, level, np.float32)
        return PerceiveJob(session, 1, unit, pcm, np.full((4, 16, 16, 3), unit % 256, np.uint8))

    def spoken(self, session: str, unit: int, level: float = 0.2) -> PerformResult:
        return PerformResult(session, 1, unit, *self.latents(level), steps=4)

    def latents(self, level: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
        """z of some unit, as the performer would have solved it."""
        return np.full((1, 2), level, np.float32), np.full((2, 3), -level, np.float32)

    def asks(self, session: str, unit: int, text: str = "", level: float | None = 0.1, z: float = 0.1) -> ThinkJob:
        """A think job that brings z of the unit before (of level `z`) and its perception (None: it was perceived)."""
        heard = None if level is None else self.hear(session, unit, level)
        return ThinkJob(session, 1, unit, text, heard, *(self.latents(z) if unit else ()))

    def think(self, *jobs: ThinkJob) -> list[ThinkResult | SessionError]:
        return self.thinker.think(jobs)

    def unit(self, session: str, unit: int, text: str = "", level: float = 0.1) -> ThinkResult:
        """One whole unit, which must succeed; the unit before was as loud."""
        thought = self.think(self.asks(session, unit, text, level, level))[0]
        assert isinstance(thought, ThinkResult), thought
        return thought

    def history(self, thought: ThinkResult | PerformJob) -> np.ndarray:
        """K of layer 0 that a result's view shows, in order."""
        view = thought.history
        assert view is not None
        pages = zip(view.page_ids, view.ranges, strict=True)
        return np.concatenate([self.pool.k[0, page, first:end, 0, 0] for page, (first, end) in pages])


@pytest.fixture
def make_bench() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(pages: int = 256, max_batch: int = 3, **options: Any) -> Bench:
        made.append(Bench(pages, max_batch, **options))
        return made[-1]

    yield make
    for bench in made:
        for session in list(bench.thinker._sessions._sessions.values()):
            bench.thinker.close(CloseJob(session.id, session.epoch))
        bench.thinker.check_integrity()
        assert not bench.pool.k.any(), "freed pages are scrubbed"
        assert not bench.pool.v.any(), "freed pages are scrubbed"
        bench.pool.close()


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()


@pytest.fixture
def started() -> Iterator[Callable[[Worker], Any]]:
    workers: list[Worker] = []

    def start(worker: Worker) -> Worker:
        worker.start()
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        worker.stop()
        assert not worker.alive


@pytest.fixture
def make() -> Iterator[Callable[..., Any]]:
    """Makes a `DuplexBench`; its threads end with the test."""
    made: list[Any] = []

    def build(**options: Any) -> Any:
        made.append(DuplexBench(**options))
        return made[-1]

    yield build
    for bench in made:
        bench.close()
