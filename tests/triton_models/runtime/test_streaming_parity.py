"""Streaming through real engines and paged K/V equals the oracle's single masked pass, for every retention policy.

Two sessions of different prompts, texts, seeds and solver steps share every batch. What the engines were given and what
they answered is recorded; the oracle gets the same conversation in one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from engine_builder.checkpoint import load_checkpoint
from engine_builder.config import BackboneConfig, ModelConfig
from engine_builder.layout import UnitLayout, rope_tables
from engine_builder.model import reference
from engine_builder.model.reference import Conversation, Outputs
from triton_models.runtime.budget.costs import CostTable
from triton_models.runtime.engines.engine import Engine, EngineSet
from triton_models.runtime.engines.tokenizer import TextTokenizer
from triton_models.runtime.kv import retention
from triton_models.runtime.kv.pages import BlockManager
from triton_models.runtime.kv.pool import HostPool
from triton_models.runtime.messages import (
    CloseJob,
    OpenJob,
    PerceiveJob,
    PerformJob,
    PerformResult,
    ThinkJob,
    ThinkResult,
)
from triton_models.runtime.performer.performer import Performer
from triton_models.runtime.performer.renderer import Renderer
from triton_models.runtime.performer.scheduler import StepScheduler
from triton_models.runtime.thinker.thinker import Thinker
from triton_models.service.load import load_engines

pytestmark = pytest.mark.engine

UNITS = 44
TOLERANCE = 1e-3  # the promise of issue 2; what is seen is about a hundred times smaller
PAGE_TOKENS = 8
POLICIES = [
    "full",
    {"window": {"sink": 2, "recent": 6}},
    {"window_language": {"sink": 1, "recent": 4, "language_recent": 15}},
]


@dataclass(frozen=True)
class Script:
    """What one session is told; `steps` is its number of solver steps."""

    name: str
    prompt: str
    seed: int
    steps: int
    texts: dict[int, str]
    picture: np.ndarray | None = None  # of a persona
    voice: np.ndarray | None = None


SCRIPTS = (
    Script("ann", "you are welcome " * 9, 11, 4, {0: "hello", 7: "say a number", 20: "one two three four five six"}),
    Script("bob", "red", 12, 2, {3: "grün", 30: "thanks"}),
)


class Recorder:
    """Passes calls on and keeps inputs (not the pools) and outputs of every row, with the session it belonged to."""

    def __init__(self, engine: Engine, owner: Callable[[int], str]) -> None:
        self._engine, self._owner = engine, owner
        self.rows: list[tuple[str, dict[str, np.ndarray], dict[str, np.ndarray]]] = []

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = self._engine.run(inputs)
        for b, page in enumerate(inputs["page_table"][:, 0]):
            given = {name: value[b].copy() for name, value in inputs.items() if not name.endswith("_pool")}
            made = {n: (v[:, b] if n in ("k_new", "v_new") else v[b]).copy() for n, v in outputs.items()}
            self.rows.append((self._owner(int(page)), given, made))
        return outputs

    def take(self, session: str) -> list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
        found = [(given, made) for owner, given, made in self.rows if owner == session]
        self.rows = [row for row in self.rows if row[0] != session]
        return found


@dataclass
class Log:
    """Everything of one session, unit by unit."""

    prompt: list[int] = field(default_factory=list)
    e_video: list[np.ndarray] = field(default_factory=list)
    e_audio: list[np.ndarray] = field(default_factory=list)
    text: list[np.ndarray] = field(default_factory=list)
    slots: list[tuple[int, ...]] = field(default_factory=list)
    logits: list[list[np.ndarray]] = field(default_factory=list)  # of the query, then of every slot
    k: list[list[np.ndarray]] = field(default_factory=list)  # of the block, then of every slot: [L, T, Hkv, D]
    v: list[list[np.ndarray]] = field(default_factory=list)
    x_video: list[np.ndarray] = field(default_factory=list)  # the probe: one solver step of the unit
    x_audio: list[np.ndarray] = field(default_factory=list)
    tau: list[float] = field(default_factory=list)
    velocity_video: list[np.ndarray] = field(default_factory=list)
    velocity_audio: list[np.ndarray] = field(default_factory=list)
    z_video: list[np.ndarray] = field(default_factory=list)
    z_audio: list[np.ndarray] = field(default_factory=list)
    pcm: list[np.ndarray] = field(default_factory=list)
    frames: list[np.ndarray] = field(default_factory=list)
    thought: ThinkResult | None = None


class Duo:
    """Thinker and performer over recording engines; `run` takes sessions through UNITS units in step."""

    def __init__(self, engine_dir: Path, pages: int = 400) -> None:
        whole = load_engines(engine_dir, ("perceive", "think", "perform", "render", "encode"))
        self.config = whole.config
        self.blocks = BlockManager(pages, PAGE_TOKENS)
        self.names: list[str] = []
        self.think, self.perform = (Recorder(whole[step], self._owner) for step in ("think", "perform"))
        engines = EngineSet(
            config=whole.config,
            engines={**whole.engines, "think": self.think, "perform": self.perform},
            state_sizes=whole.state_sizes,
            max_batch=whole.max_batch,
            tokenizer_path=whole.tokenizer_path,
        )
        self.pool = HostPool(whole.config, pages, PAGE_TOKENS)
        self.tokenizer = TextTokenizer.load(whole.tokenizer_path, whole.config.language)
        self.thinker = Thinker(engines, self.pool, self.blocks, self.tokenizer)
        scheduler = StepScheduler(CostTable.linear({"perform": (1.0, 0.1)}), whole.max_batch, degrade=False)
        self.performer = Performer(engines, self.pool, scheduler)
        self.renderer = Renderer(engines)
        self.z: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # of the unit before

    def _owner(self, page: int) -> str:
        return next((name for name in self.names if page in self.blocks.owned(name)), "")

    def close(self) -> None:
        for name in self.names:
            self.thinker.close(CloseJob(name, 1))
        self.thinker.check_integrity()
        assert not self.pool.k.any()
        self.pool.close()

    def run(self, scripts: tuple[Script, ...], policy: object, units: int) -> dict[str, Log]:
        self.names = [script.name for script in scripts]
        logs = {script.name: Log(self.tokenizer.encode(script.prompt)) for script in scripts}
        for script in scripts:
            self.thinker.open(OpenJob(script.name, 1, script.prompt, script.seed, policy, script.picture, script.voice))
        self.think.rows.clear()
        for unit in range(units):
            thoughts = self.thinker.think([self._hear(script, unit) for script in scripts])
            for script, thought in zip(scripts, thoughts, strict=True):
                assert isinstance(thought, ThinkResult), thought
                self._log_think(logs[script.name], thought)
                job = PerformJob(
                    script.name, 1, unit, thought.seed, script.steps, 2**62, thought.origin, thought.history
                )
                self.performer.join(job)
            solved: list[PerformResult] = []
            self.z = {}
            while self.performer.pending:
                for _, result in self.performer.tick():
                    assert isinstance(result, PerformResult), result
                    solved.append(result)
            for result in self.renderer.render(solved):
                assert isinstance(result, PerformResult), result
                self.z[result.session] = result.z_video, result.z_audio
                self._log_perform(logs[result.session], result)
        for script in scripts:
            self.thinker.close(CloseJob(script.name, 1))
            self.renderer.close(script.name, 1)
        self.z = {}
        return logs

    def _hear(self, script: Script, unit: int) -> ThinkJob:
        rng = np.random.default_rng([script.seed, unit])
        c = self.config
        pcm = rng.normal(0, 0.2, c.audio.unit_samples).clip(-1, 1).astype(np.float32)
        frames = rng.integers(0, 256, (4, c.video.height, c.video.width, 3), dtype=np.uint8)
        perceive = PerceiveJob(script.name, 1, unit, pcm, frames)
        return ThinkJob(script.name, 1, unit, script.texts.get(unit, ""), perceive, *self.z.get(script.name, ()))

    def _log_think(self, log: Log, thought: ThinkResult) -> None:
        passes = self.think.take(thought.session)
        block = passes[0][0]
        assert len(passes) == 1 + len(thought.slots)
        assert [int(given["ids"][0]) for given, _ in passes[1:]] == list(thought.slots)
        log.e_video.append(block["e_video"])
        log.e_audio.append(block["e_audio"])
        log.text.append(block["ids"][:-1])
        log.slots.append(thought.slots)
        log.logits.append([made["logits"] for _, made in passes])
        log.k.append([made["k_new"] for _, made in passes])
        log.v.append([made["v_new"] for _, made in passes])
        log.thought = thought

    def _log_perform(self, log: Log, result: PerformResult) -> None:
        steps = self.perform.take(result.session)
        given, made = steps[result.unit % len(steps)]
        log.x_video.append(given["x_video"])
        log.x_audio.append(given["x_audio"])
        log.tau.append(float(given["tau"]))
        log.velocity_video.append(made["velocity_video"])
        log.velocity_audio.append(made["velocity_audio"])
        log.z_video.append(result.z_video)
        log.z_audio.append(result.z_audio)
        log.pcm.append(result.pcm)
        log.frames.append(result.frames)


@pytest.fixture
def duo(mini_engines: Path) -> Iterator[Duo]:
    made = Duo(mini_engines)
    yield made
    made.close()


@pytest.fixture(scope="module")
def oracle(mini_checkpoint: Path) -> Callable[[list[Log], object], Outputs]:
    model = load_checkpoint(mini_checkpoint)

    def run(logs: list[Log], policy: object) -> Outputs:
        kept = retention.parse(policy)

        def visible(kind: str, token_unit: int, current_unit: int) -> bool:
            return kept.visible(kind, token_unit, current_unit)  # type: ignore[arg-type]

        with torch.no_grad():
            return reference.forward(model, conversation(model.config, logs), visible)

    return run


def conversation(config: ModelConfig, logs: list[Log]) -> Conversation:
    """The recorded sessions as the oracle takes them; rows of another length are padded."""
    pad = config.language.pad_id
    longest = max(len(log.prompt) for log in logs)

    def stack(name: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([np.stack(getattr(log, name)) for log in logs]))

    slots = [[[*unit, *[pad] * (config.language.slots - len(unit))] for unit in log.slots] for log in logs]
    return Conversation(
        prompt=torch.tensor([[*log.prompt, *[pad] * (longest - len(log.prompt))] for log in logs]),
        z_video=stack("z_video"),
        z_audio=stack("z_audio"),
        e_video=stack("e_video"),
        e_audio=stack("e_audio"),
        text=stack("text"),
        slots=torch.tensor(slots),
        x_video=stack("x_video"),
        x_audio=stack("x_audio"),
        tau=torch.tensor([log.tau for log in logs], dtype=torch.float32),
    )


def differences(config: ModelConfig, logs: list[Log], outputs: Outputs) -> dict[str, float]:
    """Largest absolute difference of streaming and oracle, by output."""
    lay = UnitLayout.of(config)
    worst = dict.fromkeys(("logits", "velocity_video", "velocity_audio", "k", "v"), 0.0)

    def note(name: str, got: np.ndarray, expected: torch.Tensor) -> None:
        worst[name] = max(worst[name], float(np.abs(got - expected.numpy()).max()))

    for b, log in enumerate(logs):
        for unit in range(len(log.slots)):
            for i, logits in enumerate(log.logits[unit]):
                note("logits", logits, outputs.logits[b, unit, i])
            note("velocity_video", log.velocity_video[unit], outputs.velocity_video[b, unit])
            note("velocity_audio", log.velocity_audio[unit], outputs.velocity_audio[b, unit])
            kept = lay.committed_tokens(int((log.text[unit] != config.language.pad_id).sum()))
            for name in ("k", "v"):
                block, *slots = getattr(log, name)[unit]
                expected = getattr(outputs, name)[:, b, unit]
                note(name, block[:, kept], expected[:, kept])
                for i, slot in enumerate(slots):
                    note(name, slot[:, 0], expected[:, lay.slot_offset + i])
    return worst


@pytest.mark.parametrize("policy", POLICIES, ids=["full", "window", "window_language"])
def test_streaming_equals_one_masked_pass(
    duo: Duo, oracle: Callable[[list[Log], object], Outputs], policy: object
) -> None:
    logs = list(duo.run(SCRIPTS, policy, UNITS).values())
    worst = differences(duo.config, logs, oracle(logs, policy))
    assert max(worst.values()) < TOLERANCE, worst
    # The comparison means something only if the conversation varies and the history counts.
    assert len({len(unit) for log in logs for unit in log.slots}) > 1, "units of one length only"
    assert len({unit[0] for log in logs for unit in log.slots}) > 1, "one state only"
    if policy != "full":
        blind = differences(duo.config, logs, oracle(logs, "full"))
        assert min(blind["logits"], blind["velocity_video"], blind["k"]) > 10 * TOLERANCE, blind


def test_the_pool_holds_what_the_oracle_computes(
    duo: Duo, oracle: Callable[[list[Log], object], Outputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    """K and V read back through the page table of the performer's mapping, in the order of the commits."""
    monkeypatch.setattr(duo.thinker, "close", lambda job: None)
    log = duo.run(SCRIPTS[:1], "full", 6)["ann"]
    outputs = oracle([log], "full")
    lay = UnitLayout.of(duo.config)
    order: list[torch.Tensor] = []
    for unit, slots in enumerate(log.slots):
        kept = lay.committed_tokens(int((log.text[unit] != duo.config.language.pad_id).sum()))
        av, text = [*kept[: lay.text_offset], kept[-1]], kept[lay.text_offset : -1]
        order += [outputs.k[:, 0, unit, [*av, *text]], outputs.k[:, 0, unit, lay.slot_offset :][:, : len(slots)]]
    assert log.thought is not None
    view = log.thought.history
    pages = zip(view.page_ids, view.ranges, strict=True)
    stored = np.concatenate([duo.pool.k[:, page, first:end] for page, (first, end) in pages], axis=1)
    np.testing.assert_allclose(stored[:, len(log.prompt) :], torch.cat(order, dim=1).numpy(), atol=TOLERANCE)


@pytest.mark.parametrize("policy", POLICIES, ids=["full", "window", "window_language"])
def test_sessions_that_share_batches_equal_each_alone(duo: Duo, policy: object) -> None:
    """Bit for bit, although the neighbour has a longer prompt and leaves every tick two steps later."""
    together = duo.run(SCRIPTS, policy, UNITS)
    for script in SCRIPTS:
        alone = duo.run((script,), policy, UNITS)[script.name]
        shared = together[script.name]
        assert shared.slots == alone.slots
        for name in ("z_video", "z_audio", "pcm", "frames"):
            np.testing.assert_array_equal(np.stack(getattr(shared, name)), np.stack(getattr(alone, name)), err_msg=name)


def test_a_session_replays_bit_for_bit_in_the_same_company(duo: Duo) -> None:
    first, second = (duo.run(SCRIPTS, POLICIES[1], 8) for _ in range(2))
    for name, log in first.items():
        for field_name in ("pcm", "z_audio", "frames"):
            np.testing.assert_array_equal(
                np.stack(getattr(log, field_name)), np.stack(getattr(second[name], field_name))
            )


def test_positions_are_exact_at_a_million(duo: Duo) -> None:
    """RoPE tables at position 10^6 against exact arithmetic, and attention scores that depend on distances alone."""
    b = duo.config.backbone
    exponent = np.arange(0, b.head_dim, 2, dtype=np.longdouble) / b.head_dim
    positions = np.array([0, 1, 12_345, 10**6, 10**6 + 7])
    angle = positions[:, None].astype(np.longdouble) * np.longdouble(b.rope_theta) ** -exponent
    cos, sin = rope_tables(b, positions)
    np.testing.assert_allclose(cos, np.cos(angle).astype(np.float64), atol=1e-7)
    np.testing.assert_allclose(sin, np.sin(angle).astype(np.float64), atol=1e-7)

    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, b.head_dim))

    def score(at_q: int, at_k: int) -> float:
        def rotated(x: np.ndarray, position: int) -> np.ndarray:
            c, s = (table[0].astype(np.float64) for table in rope_tables(b, [position]))
            first, second = np.split(x, 2)
            return np.concatenate([first * c - second * s, second * c + first * s])

        return float(rotated(q, at_q) @ rotated(k, at_k))

    for distance in (0, 1, 17, 900):
        assert score(10**6 + distance, 10**6) == pytest.approx(score(distance, 0), abs=1e-5)


def test_a_conversation_a_million_positions_in_is_the_same(duo: Duo, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole model sees distances only: 8 units give the same outputs wherever they stand."""
    script = Script("ann", "red", 11, 2, {1: "hello"})
    near = duo.run((script,), "full", 8)["ann"]
    far_off = 10**6
    moved = []

    def tables(backbone: BackboneConfig, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        moved.append(positions)
        return rope_tables(backbone, np.asarray(positions) + far_off)

    for role in ("thinker.passes", "performer.performer"):  # where every position of the serving path gets its tables
        monkeypatch.setattr(f"triton_models.runtime.{role}.rope_tables", tables)
    far = duo.run((script,), "full", 8)["ann"]
    assert len(moved) >= 16, "prompt, blocks with their slots, and solved units"
    assert far.slots == near.slots
    for unit in range(8):
        for got, expected in zip(far.logits[unit], near.logits[unit], strict=True):
            np.testing.assert_allclose(got, expected, atol=TOLERANCE)
    np.testing.assert_allclose(np.stack(far.z_audio), np.stack(near.z_audio), atol=TOLERANCE)
