"""The performer's thread: what a step finished is rendered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from msgspec import structs
from workers import WAIT, Bench, Gate, perform_job, performer_of, performing

from triton_models.runtime.messages import CloseJob, PerformResult, SessionError
from triton_models.runtime.performer.renderer import Renderer
from triton_models.runtime.performer.worker import PerformerWorker
from triton_models.runtime.worker import Worker

pytestmark = pytest.mark.unit


def test_what_one_step_finished_is_rendered_in_one_call(bench: Bench, started: Callable[[Worker], Any]) -> None:
    worker = performing(bench)
    futures = [worker.submit(perform_job(name)) for name in "abc"]
    started(worker)
    for future in futures:
        assert isinstance(future.result(WAIT), PerformResult)
    assert bench.fake("render").batches == [3]


def test_a_render_that_fails_fails_its_unit_alone(bench: Bench, started: Callable[[Worker], Any]) -> None:
    def spoil(_: object, outputs: dict[str, np.ndarray]) -> None:
        outputs["pcm"][0] = np.nan

    bench.fake("render").spoil = spoil
    worker = performing(bench)
    futures = [worker.submit(perform_job(name)) for name in "ab"]
    started(worker)
    outcomes = [future.exception(WAIT) for future in futures]
    assert sum(isinstance(outcome, SessionError) for outcome in outcomes) == 1
    assert outcomes.count(None) == 1


def test_a_crashed_performer_turn_fails_every_solve_under_way(
    bench: Bench, started: Callable[[Worker], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    performer = performer_of(bench)
    worker = PerformerWorker(performer, Renderer(bench.engines))
    futures = [worker.submit(perform_job(name)) for name in "ab"]
    with monkeypatch.context() as patch:
        patch.setattr(performer, "tick", lambda: 1 // 0)
        started(worker)
        for future in futures:
            with pytest.raises(SessionError, match="INTERNAL: the performer failed"):
                future.result(WAIT)
    assert isinstance(worker.submit(perform_job("a")).result(WAIT), PerformResult)


def test_a_closed_session_leaves_the_performer(bench: Bench, started: Callable[[Worker], Any]) -> None:
    gate = Gate(bench.fake("perform"))
    worker = started(performing(bench))
    solving = worker.submit(perform_job("a", steps=16))
    assert gate.entered.wait(WAIT)
    close = worker.submit(CloseJob("a", 1))
    gate.open()
    assert close.result(WAIT) is None
    with pytest.raises(SessionError, match="ABORTED: session 'a' was closed"):
        solving.result(WAIT)


def test_a_bad_job_fails_alone(bench: Bench, started: Callable[[Worker], Any]) -> None:
    """Whatever is wrong with a job, the round that others share goes on."""
    worker = performing(bench)
    good, bad = worker.submit(perform_job("a")), worker.submit(structs.replace(perform_job("b"), seed="many"))
    started(worker)
    assert isinstance(good.result(WAIT), PerformResult)
    with pytest.raises(SessionError, match="INTERNAL: the performer failed"):
        bad.result(WAIT)
