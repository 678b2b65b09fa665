"""The performer over a fake engine: rows at their own tau, joins and departures between steps, failures in one row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from triton_models.runtime.budget.costs import CostTable
from triton_models.runtime.messages import CloseJob, HistoryView, PerformJob, PerformResult, SessionError
from triton_models.runtime.performer import noise
from triton_models.runtime.performer.performer import Performer
from triton_models.runtime.performer.scheduler import StepScheduler

pytestmark = pytest.mark.unit

Bench = Any  # the class of conftest.py
HOUR_NS = 3_600_000_000_000
MS = 1_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


class Stage:
    """A performer with a clock that stands still and a pool whose page p holds the value p in its first token."""

    def __init__(self, bench: Bench, max_batch: int = 3, degrade: bool = True) -> None:
        self.engine = bench.fake("perform")
        self.pool = bench.pool
        for page in range(1, 10):
            self.pool.k[:, page, 0] = page
        self.clock = Clock()
        costs = CostTable.linear({"perform": (10.0, 0.0)})
        self.performer = Performer(
            bench.engines, self.pool, StepScheduler(costs, max_batch, degrade=degrade), clock=self.clock
        )

    def job(self, session: str, *pages: int, unit: int = 0, steps: int = 4, deadline: int = HOUR_NS) -> PerformJob:
        ranges = np.tile(np.array([0, 1]), (len(pages), 1))
        view = HistoryView(np.array(pages, dtype=np.int64), ranges)
        return PerformJob(session, 1, unit, seed=5, steps=steps, deadline_ns=deadline, origin=0, history=view)

    def finish(self) -> dict[str, PerformResult | SessionError]:
        done: dict[str, PerformResult | SessionError] = {}
        for _ in range(200):
            if not self.performer.pending:
                return done
            done |= {job.session: result for job, result in self.performer.tick()}
        raise AssertionError("jobs do not finish")


@pytest.fixture
def stage(bench: Bench) -> Any:
    made = Stage(bench)
    yield made
    made.pool.k[:] = 0


def z_of(result: object) -> tuple[float, float]:
    """The value that every element of z_video and of z_audio has."""
    assert isinstance(result, PerformResult), result
    assert np.ptp(result.z_video) < 1e-5
    return float(result.z_video[0, 0]), float(result.z_audio[0, 0])


def test_a_job_ends_on_the_estimate_of_its_own_history(stage: Stage) -> None:
    stage.performer.join(stage.job("a", 1, 2))
    stage.performer.join(stage.job("b", 5))
    done = stage.finish()
    assert z_of(done["a"]) == pytest.approx((3.0, 1.5), abs=1e-5)
    assert z_of(done["b"]) == pytest.approx((5.0, 2.5), abs=1e-5)
    assert done["a"].steps == 4
    assert set(done["a"].ms) == {"queue", "perform"}
    assert stage.engine.batches == [2, 2, 2, 2]


def test_the_first_input_is_the_noise_of_seed_and_unit_at_tau_one(stage: Stage, bench: Bench) -> None:
    seen: list[dict[str, np.ndarray]] = []
    stage.engine.spoil = lambda inputs, _: seen.append({k: v.copy() for k, v in inputs.items() if "pool" not in k})
    stage.performer.join(stage.job("a", 1, unit=7))
    stage.finish()
    video, audio = noise.latents(bench.config, 5, 7)
    np.testing.assert_array_equal(seen[0]["x_video"][0], video)
    np.testing.assert_array_equal(seen[0]["x_audio"][0], audio)
    np.testing.assert_allclose([x["tau"][0] for x in seen], bench.config.solver.taus(4)[:-1])


def test_jobs_join_and_leave_between_steps_each_at_its_own_tau(stage: Stage) -> None:
    taus: list[list[float]] = []
    stage.engine.spoil = lambda inputs, _: taus.append(sorted(inputs["tau"].tolist(), reverse=True))
    stage.performer.join(stage.job("a", 1))
    assert stage.performer.tick() == []
    stage.performer.join(stage.job("b", 2))
    assert stage.performer.tick() == []
    stage.performer.join(stage.job("c", 3, steps=1))
    assert [job.session for job, _ in stage.performer.tick()] == ["c"]
    done = stage.finish()
    assert taus == [[1.0], [1.0, 0.75], [1.0, 0.75, 0.5], [0.5, 0.25], [0.25]]
    assert z_of(done["b"])[0] == pytest.approx(2.0, abs=1e-5)


def test_a_row_is_the_same_whatever_shares_its_batch(stage: Stage) -> None:
    stage.performer.join(stage.job("a", 1, 4))
    alone = stage.finish()["a"]
    for name, pages in (("x", (9,)), ("a", (1, 4)), ("y", (7, 8))):
        stage.performer.join(stage.job(name, *pages))
    shared = stage.finish()["a"]
    np.testing.assert_array_equal(alone.z_video, shared.z_video)
    np.testing.assert_array_equal(alone.z_audio, shared.z_audio)


def test_a_late_job_jumps_to_the_estimate_and_says_how_many_steps_it_had(stage: Stage) -> None:
    def take_ten_ms(*_: object) -> None:
        stage.clock.now += 10 * MS

    stage.engine.spoil = take_ten_ms
    stage.performer.join(stage.job("a", 6, deadline=25 * MS))  # time for two steps of 10 ms and their margin
    result = stage.finish()["a"]
    assert z_of(result)[0] == pytest.approx(6.0, abs=1e-5)
    assert result.steps == 2
    assert result.solved_ns == 20 * MS
    assert result.ms["queue"] == 0.0


def test_nan_in_one_row_stays_in_that_row(stage: Stage) -> None:
    def spoil(inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> None:
        row = inputs["page_table"][:, 0].tolist().index(2) if 2 in inputs["page_table"][:, 0] else None
        if row is not None:
            outputs["velocity_audio"][row, 0, 0] = np.nan

    stage.engine.spoil = spoil
    for i, name in enumerate("abc", start=1):
        stage.performer.join(stage.job(name, i))
    done = stage.finish()
    lost = done.pop("b")
    assert isinstance(lost, SessionError)
    assert str(lost) == "INTERNAL: perform 0 of session 'b': NaN or Inf in the velocity"
    assert {name: round(z_of(result)[0], 4) for name, result in done.items()} == {"a": 1.0, "c": 3.0}
    assert stage.performer.pending == 0


def test_a_row_that_its_solver_finds_lost_leaves_at_once(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    tick = stage.performer._solver.tick

    def look(slots: Any, taus: Any, steps: Any) -> Any:
        return [fine and slot != 1 for slot, fine in zip(slots, tick(slots, taus, steps), strict=True)]

    monkeypatch.setattr(stage.performer._solver, "tick", look)
    for i, name in enumerate("abc", start=1):
        stage.performer.join(stage.job(name, i))
    ((job, error),) = stage.performer.tick()
    assert (job.session, str(error)) == ("b", "INTERNAL: perform 0 of session 'b': NaN or Inf in the velocity")
    assert set(stage.finish()) == {"a", "c"}


def test_a_crash_fails_the_rows_of_its_tick(stage: Stage) -> None:
    for name, page in (("a", 1), ("b", 2), ("c", 3), ("d", 4)):  # one more than a batch
        stage.performer.join(stage.job(name, page, deadline=HOUR_NS + page))
    stage.engine.crash = RuntimeError("device lost")
    failed = stage.performer.tick()
    stage.engine.crash = None
    assert sorted(job.session for job, _ in failed) == ["a", "b", "c"]
    assert all("the engine call failed (device lost)" in str(error) for _, error in failed)
    assert z_of(stage.finish()["d"])[0] == pytest.approx(4.0, abs=1e-5)
    assert stage.performer.stats()["perform.crashed"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "solver steps: expected 1 to 16, got 0"),
        ({"steps": 17}, "solver steps: expected 1 to 16, got 17"),
        ({"unit": -1}, "unit: expected 0 to"),
    ],
)
def test_bad_numbers_are_refused(stage: Stage, change: dict[str, int], message: str) -> None:
    with pytest.raises(SessionError, match=f"INVALID_ARGUMENT: {message}"):
        stage.performer.join(stage.job("a", 1, **change))
    assert stage.performer.pending == 0


def test_a_page_outside_the_pool_never_reaches_a_batch(stage: Stage) -> None:
    with pytest.raises(SessionError, match=r"INVALID_ARGUMENT: history\.page_ids: expected 0 to 255, got 1 to 256"):
        stage.performer.join(stage.job("a", 1, 256))


def test_one_unit_cannot_join_twice(stage: Stage) -> None:
    stage.performer.join(stage.job("a", 1))
    with pytest.raises(SessionError, match="ALREADY_EXISTS: unit 0 of session 'a' is being performed"):
        stage.performer.join(stage.job("a", 1))
    stage.finish()


def test_a_session_that_leaves_is_out_of_the_next_tick(stage: Stage) -> None:
    stage.performer.join(stage.job("a", 1))
    stage.performer.join(stage.job("b", 2))
    stage.performer.tick()
    outcomes = stage.performer.leave(CloseJob("a", 1))
    assert [(job.session, str(error)) for job, error in outcomes] == [("a", "ABORTED: session 'a' was closed")]
    assert stage.performer.leave(CloseJob("a", 1)) == []
    assert stage.performer.leave(CloseJob("b", 0)) == []  # an older epoch
    assert list(stage.finish()) == ["b"]
    stage.performer.join(stage.job("c", 3))
    stage.performer.clear()
    assert stage.performer.pending == 0
    assert stage.performer.tick() == []
