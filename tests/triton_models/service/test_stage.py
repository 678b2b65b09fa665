"""A stage: the slice goes from role to role by a function call, nobody reads another's pages, and nothing is left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from triton_models.runtime.budget.costs import CostTable
from triton_models.runtime.engines.engine import EngineSet
from triton_models.runtime.kv.pool import HostPool
from triton_models.runtime.messages import (
    CloseJob,
    HistoryView,
    OpenJob,
    PerceiveJob,
    PerformJob,
    PerformResult,
    SessionError,
    ThinkJob,
    ThinkResult,
)
from triton_models.runtime.performer.scheduler import StepScheduler
from triton_models.service.load import load_engines
from triton_models.service.stage import STEPS, Stage

pytestmark = pytest.mark.engine
WAIT = 20
KEY = bytes(32)


@pytest.fixture(scope="module")
def engines(mini_engines: Path) -> EngineSet:
    return load_engines(mini_engines, STEPS["both"])


@pytest.fixture
def start(engines: EngineSet) -> Iterator[Callable[..., Stage]]:
    made: list[Stage] = []

    def make(role: Any = "both", **options: Any) -> Stage:
        def scheduler(*_: object) -> StepScheduler:
            return StepScheduler(CostTable.linear({"perform": (0.0, 0.0)}), engines.max_batch, degrade=False)

        made.append(Stage(engines, role, pages=60, page_tokens=8, scheduler=scheduler, key=KEY, **options))
        made[-1].start()
        return made[-1]

    yield make
    for stage in made:
        stage.stop()


def think_job(engines: EngineSet, session: str, unit: int = 0, z: tuple[np.ndarray, ...] = ()) -> ThinkJob:
    rng = np.random.default_rng(unit)
    c = engines.config
    pcm = rng.normal(0, 0.1, c.audio.unit_samples).astype(np.float32)
    frames = rng.integers(0, 256, (4, c.video.height, c.video.width, 3), dtype=np.uint8)
    heard = PerceiveJob(session, 1, unit, pcm, frames)
    return ThinkJob(session, 1, unit, "", heard, *(z or (None, None)), steps=2, deadline_ns=2**62)


def perform_job(thought: ThinkResult, **changes: Any) -> PerformJob:
    job = PerformJob(thought.session, 1, thought.unit, thought.seed, 2, 2**62, thought.origin)
    return structs.replace(job, **{"history": thought.history, "seal": thought.seal, **changes})


def forgotten(stage: Stage) -> None:
    """Waits until nothing is left of any session: pages go first, and what is known of it in the callback after."""
    end = time.monotonic() + WAIT
    while (stage.blocks.used or stage._heard) and time.monotonic() < end:
        time.sleep(0.001)
    assert (stage.blocks.used, stage._heard) == (0, {})


def error_of(future: Any) -> str:
    with pytest.raises(SessionError) as caught:
        future.result(WAIT)
    return str(caught.value)


def test_a_unit_is_solved_before_anybody_asks_for_it(start: Callable[..., Stage], engines: EngineSet) -> None:
    stage = start()
    stage.submit(OpenJob("a", 1, "be kind", 7)).result(WAIT)
    z: tuple[np.ndarray, ...] = ()
    for unit in range(3):
        thought = stage.submit(think_job(engines, "a", unit, z)).result(WAIT)
        assert (thought.history, thought.seal) == (None, b""), "no page is named outside"
        solved = stage.submit(perform_job(thought)).result(WAIT)
        assert isinstance(solved, PerformResult)
        assert solved.pcm is not None
        z = solved.z_video, solved.z_audio
    stage.submit(CloseJob("a", 1)).result(WAIT)
    assert stage.blocks.used == 0
    assert not stage.pool.k.any()
    assert [*stage._solving, *stage._closing, *stage._heard] == []
    assert set(stage.parts) == {"thinker", "performer"}
    assert all(part.status()["alive"] for part in stage.parts.values())


def test_pages_of_others_cannot_be_named(start: Callable[..., Stage], engines: EngineSet) -> None:
    """H2: a perform job over the pages of a victim gave its next sound."""
    both = start()
    both.submit(OpenJob("victim", 1)).result(WAIT)
    thought = both.submit(think_job(engines, "victim")).result(WAIT)
    pages = HistoryView(np.arange(1, 20), np.tile(np.array([[0, 8]]), (19, 1)))
    assert "NOT_FOUND" in error_of(both.submit(perform_job(thought, session="thief", history=pages)))
    assert "NOT_FOUND" in error_of(both.submit(perform_job(thought, unit=1)))
    assert isinstance(both.submit(perform_job(thought)).result(WAIT), PerformResult), "the victim noticed nothing"


def test_two_stages_take_pages_under_a_seal_alone(
    start: Callable[..., Stage], engines: EngineSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = HostPool(engines.config, 60, 8)
    monkeypatch.setattr(type(engines.target), "pool", lambda *_: shared)
    thinker, performer = start("thinker"), start("performer")
    whole = start()
    expected = []
    for stage in (whole, thinker):
        stage.submit(OpenJob("a", 1, "", 7)).result(WAIT)
        thought = stage.submit(think_job(engines, "a")).result(WAIT)
        expected.append((performer if stage is thinker else whole).submit(perform_job(thought)).result(WAIT))
        if stage is whole:
            whole.submit(CloseJob("a", 1)).result(WAIT)
    np.testing.assert_array_equal(expected[0].pcm, expected[1].pcm)
    for forged in ({"session": "thief"}, {"unit": 1}, {"seal": b""}, {"epoch": 2}):
        assert "seal of its owner" in error_of(performer.submit(perform_job(thought, **forged)))
    assert "takes no ThinkJob" in error_of(performer.submit(think_job(engines, "a")))
    for stage in (performer, thinker):
        stage.submit(CloseJob("a", 1)).result(WAIT)
    assert thinker.blocks.used == 0


def test_a_close_that_overtakes_a_think_leaves_nothing(
    start: Callable[..., Stage], engines: EngineSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, gate, entered = start(), threading.Event(), threading.Event()
    stage.submit(OpenJob("a", 1)).result(WAIT)
    run = engines["think"].run

    def held(inputs: Any) -> Any:
        entered.set()
        assert gate.wait(WAIT)
        return run(inputs)

    with monkeypatch.context() as patch:
        patch.setattr(engines["think"], "run", held)
        thinking = stage.submit(think_job(engines, "a"))
        assert entered.wait(WAIT)
        closing = stage.submit(CloseJob("a", 1))
        gate.set()
        thought = thinking.result(WAIT)
        closing.result(WAIT)
    assert "NOT_FOUND" in error_of(stage.submit(perform_job(thought)))
    assert stage.parts["performer"].figures()["jobs"] == 0
    assert stage.blocks.used == 0
    assert [*stage._solving, *stage._closing] == []


def test_openings_of_nobody_are_reaped(start: Callable[..., Stage]) -> None:
    """H6: forty of them filled the thinker for ever."""
    stage = start(max_sessions=2, orphan_seconds=0.0)
    for name in "ab":
        stage.submit(OpenJob(name, 1, "be kind")).result(WAIT)
    assert "all 2 of this thinker are open" in error_of(stage.submit(OpenJob("c", 1)))
    stage.reap()
    forgotten(stage)
    stage.submit(OpenJob("c", 1)).result(WAIT)


def test_what_was_opened_while_a_close_ends_stays_known(
    start: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or nobody reaps it, and its pages are gone for ever."""
    stage, closed = start(orphan_seconds=0.0), Future[Any]()
    stage.submit(OpenJob("a", 1, "be kind")).result(WAIT)
    thinker = stage._thinker
    assert thinker is not None
    with monkeypatch.context() as patch:
        submit = thinker.submit
        patch.setattr(thinker, "submit", lambda job: closed if isinstance(job, CloseJob) else submit(job))
        closing = stage.submit(CloseJob("a", 1))
        opening = stage.submit(OpenJob("a", 1, "be kind"))
        closed.set_result(None)
        closing.result(WAIT)
        assert "is open" in error_of(opening)  # that close has not come to the thinker
    assert [*stage._heard] == ["a"]
    stage.reap()
    forgotten(stage)


def test_what_is_heard_of_is_queued_before_a_close_can_come(
    start: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reaper's close between the two left a session that nobody knew."""
    stage = start()
    thinker = stage._thinker
    assert thinker is not None
    submit = thinker.submit
    reaping = threading.Thread(target=lambda: stage.submit(CloseJob("a", 1)).result(WAIT))

    def slow(job: Any) -> Any:
        if isinstance(job, OpenJob):
            reaping.start()
            reaping.join(0.3)  # it has all the time to come between, if it can
        return submit(job)

    monkeypatch.setattr(thinker, "submit", slow)
    stage.submit(OpenJob("a", 1, "be kind")).result(WAIT)
    reaping.join()
    assert bool(stage._heard) == bool(stage.blocks.used)


def test_nothing_is_handed_over_while_a_second_close_is_under_way(
    start: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the thinker frees pages that the performer reads."""
    stage, first, second = start(), Future[Any](), Future[Any]()
    first.set_result(None)
    closes = iter([first, second])
    with monkeypatch.context() as patch:
        patch.setattr(stage._thinker, "submit", lambda job: next(closes))
        one, two = stage.submit(CloseJob("a", 5)), stage.submit(CloseJob("a", 1))
        one.result(WAIT)
        pages = HistoryView(np.arange(1, 3), np.tile(np.array([[0, 8]]), (2, 1)))
        stage._hand_over(PerformJob("a", 1, 0, 0, 2, 2**62, 0, pages))
        assert not stage._solving
        second.set_result(None)
        two.result(WAIT)
    assert not stage._closing


def test_a_stage_that_cannot_be_made_leaves_no_pool(engines: EngineSet, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[HostPool] = []
    monkeypatch.setattr(HostPool, "close", lambda pool: closed.append(pool))

    def broken(*_: object) -> StepScheduler:
        raise ValueError("costs: no measurement of 'perform'")

    with pytest.raises(ValueError, match="costs: no measurement"):
        Stage(engines, pages=60, page_tokens=8, scheduler=broken)
    assert len(closed) == 1
