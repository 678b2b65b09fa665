"""The short form of `make fuzz`: the doors of a stage and of the loop; and pages, which nobody reads who is not their
owner, whatever the job."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import doors
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from triton_models.runtime.budget.costs import CostTable
from triton_models.runtime.kv.pool import HostPool
from triton_models.runtime.messages import (
    CloseJob,
    HistoryView,
    OpenJob,
    PerceiveJob,
    PerformJob,
    SessionError,
    ThinkJob,
)
from triton_models.runtime.performer.scheduler import StepScheduler
from triton_models.service.load import load_engines
from triton_models.service.stage import STEPS, Stage

pytestmark = pytest.mark.engine
WAIT = 20
SCALE = int(os.environ.get("FUZZ_SCALE", "1"))  # `make fuzz`


def test_odd_messages_get_one_answer_each_and_hurt_nobody(mini_engines: Path) -> None:
    seen = doors.run(mini_engines, messages=2000 * SCALE, seed=0)
    print(seen)
    assert sum(seen["stage"].values()) == 1500 * SCALE
    assert sum(seen["loop"].values()) == 500 * SCALE
    assert {"Refused", "WireError", "answered"} <= set(seen["stage"])
    assert {"INVALID_ARGUMENT", "answered"} <= set(seen["loop"])


@pytest.fixture(scope="module")
def thought(mini_engines: Path) -> Iterator[dict[str, Any]]:
    """A victim whose unit was thought, with one device and with two: the stages that an attacker's job may reach."""
    engines = load_engines(mini_engines, STEPS["both"])
    shared = HostPool(engines.config, 60, 8)

    def make(role: Any) -> Stage:
        scheduler = lambda *_: StepScheduler(CostTable.linear({"perform": (0.0, 0.0)}), engines.max_batch)  # noqa: E731
        stage = Stage(engines, role, pages=60, page_tokens=8, scheduler=scheduler, key=bytes(range(32)))
        stage.start()
        return stage

    c, stages, results = engines.config, {"both": make("both")}, {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(engines.target), "pool", lambda *_: shared)
        stages |= {role: make(role) for role in ("thinker", "performer")}
    pcm, frames = np.zeros(c.audio.unit_samples, np.float32), np.zeros((4, c.video.height, c.video.width, 3), np.uint8)
    for role in ("both", "thinker"):
        stages[role].submit(OpenJob("victim", 5)).result(WAIT)
        heard = PerceiveJob("victim", 5, 0, pcm, frames)
        results[role] = (
            stages[role].submit(ThinkJob("victim", 5, 0, "", heard, steps=2, deadline_ns=2**62)).result(WAIT)
        )
    yield {"stages": stages, "results": results}
    for stage in stages.values():
        stage.submit(CloseJob("victim", 5)).result(WAIT)
        stage.stop()


NUMBERS = st.integers(0, 2**62)
PAGES = st.lists(st.tuples(st.integers(-5, 70), st.integers(-1, 9), st.integers(-1, 9)), max_size=12).map(
    lambda rows: HistoryView(
        np.array([page for page, _, _ in rows], np.int64), np.array([row[1:] for row in rows], np.int64).reshape(-1, 2)
    )
)
FORGED = st.fixed_dictionaries(
    {},
    optional={
        "session": st.sampled_from(["victim", "thief", "str:victim#5"]),
        "epoch": st.sampled_from([5, 0, 4, 6]) | NUMBERS,
        "unit": st.sampled_from([0, 1]) | NUMBERS,
        "history": PAGES,
        "seal": st.binary(max_size=40),
    },
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(changes=FORGED, rest=st.fixed_dictionaries({"seed": NUMBERS, "origin": st.integers(0, 40)}))
def test_no_job_reads_the_pages_of_another_session(thought: dict[str, Any], changes: Any, rest: Any) -> None:
    """Even behind the secret of the run: what names pages is answered only as its owner wrote it."""
    stages, results = thought["stages"], thought["results"]
    real = PerformJob("victim", 5, 0, 1, 2, 2**62, 0)
    if "history" in changes or not {"session", "epoch", "unit"}.isdisjoint(changes):
        job = structs.replace(real, **{"history": results["thinker"].history, **changes}, **rest)
        with pytest.raises(SessionError, match="NOT_FOUND"):
            stages["both"].submit(job).result(WAIT)
    sealed = {"history": results["thinker"].history, "seal": results["thinker"].seal}
    job = structs.replace(real, **{**sealed, **changes}, **rest)
    owned = all(
        np.array_equal(given, own) if isinstance(own, np.ndarray) else given == own
        for given, own in (
            (job.session, "victim"),
            (job.epoch, 5),
            (job.unit, 0),
            (job.seal, sealed["seal"]),
            (job.history.page_ids if job.history else None, sealed["history"].page_ids),
            (job.history.ranges if job.history else None, sealed["history"].ranges),
        )
    )
    if not owned:
        with pytest.raises(SessionError, match="under the seal of its owner"):
            stages["performer"].submit(job).result(WAIT)
