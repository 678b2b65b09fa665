"""The renderer over a fake engine: sessions that share a call, failures that stay in their row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from outcomes import error_of

from triton_models.runtime.messages import PerformResult
from triton_models.runtime.performer.renderer import Renderer

pytestmark = pytest.mark.unit

Bench = Any  # the class of conftest.py


def shown(result: object) -> PerformResult:
    assert isinstance(result, PerformResult), result
    assert result.pcm is not None, "rendered"
    assert result.frames is not None, "rendered"
    return result


def test_units_go_on_from_the_state_of_the_one_before(bench: Bench) -> None:
    renderer = Renderer(bench.engines)
    levels = [float(shown(renderer.render([bench.spoken("a", unit)])[0]).pcm[0]) for unit in range(4)]
    expected, state = [], 0.0
    for _ in range(4):
        expected.append(-0.2 + state)
        state = 0.25 * expected[-1]
    np.testing.assert_allclose(levels, expected, rtol=1e-6)
    result = shown(renderer.render([bench.spoken("a", 4)])[0])
    assert result.pcm.shape == (bench.config.audio.unit_samples,)
    assert set(result.ms) == {"render"}


def test_batched_equals_solo_bit_for_bit(bench: Bench) -> None:
    together, alone = Renderer(bench.engines), Renderer(bench.engines)
    names = [f"s{i}" for i in range(7)]  # more than two full batches
    for unit in range(3):
        jobs = [bench.spoken(name, unit, 0.02 * i) for i, name in enumerate(names)]
        for job, result in zip(jobs, together.render(jobs), strict=True):
            solo = shown(alone.render([job])[0])
            np.testing.assert_array_equal(shown(result).pcm, solo.pcm)
            np.testing.assert_array_equal(shown(result).frames, solo.frames)
    assert max(bench.fake("render").batches) == 3
    assert together.metrics.snapshot()["render.rows"] == 21


def test_bad_jobs_are_refused_alone(bench: Bench) -> None:
    renderer = Renderer(bench.engines, max_sessions=2)
    bad = PerformResult("b", 1, 0, np.zeros((2, 2), np.float32), np.zeros((2, 3), np.float32), 4)
    results = renderer.render([bench.spoken("a", 0), bad, bench.spoken("c", 0)])
    expected = "z_video, z_audio: expected (1, 2) and (2, 3), got (2, 2) and (2, 3)"
    assert expected in error_of(results[1], "INVALID_ARGUMENT")
    shown(results[2])
    assert "expected 1, the next one to render, got 0" in error_of(
        renderer.render([bench.spoken("a", 0)])[0], "INVALID_ARGUMENT"
    )
    assert "has rendered nothing yet" in error_of(renderer.render([bench.spoken("d", 1)])[0], "NOT_FOUND")
    assert "all 2 of this renderer are open" in error_of(
        renderer.render([bench.spoken("d", 0)])[0], "RESOURCE_EXHAUSTED"
    )


@pytest.mark.parametrize("output", ["pcm", "state_out"])
def test_nan_in_one_row_stays_in_that_row(bench: Bench, output: str) -> None:
    renderer = Renderer(bench.engines)

    def spoil(_: object, outputs: dict[str, np.ndarray]) -> None:
        outputs[output][1] = np.nan

    bench.fake("render").spoil = spoil
    results = renderer.render([bench.spoken(name, 0) for name in "abc"])
    bench.fake("render").spoil = None
    message = error_of(results[1], "INTERNAL")
    assert message == f"render 0 of session 'b': NaN or Inf in {output}"
    again = renderer.render([bench.spoken("a", 1), bench.spoken("b", 1)])
    assert np.isfinite(shown(again[0]).pcm).all()
    assert error_of(again[1], "INTERNAL") == message, "it only closes now"
    renderer.close("b", 1)
    shown(renderer.render([bench.spoken("b", 0)])[0])


def test_a_crash_fails_its_batch(bench: Bench) -> None:
    renderer = Renderer(bench.engines)
    bench.fake("render").crash = RuntimeError("out of memory")
    results = renderer.render([bench.spoken(name, 0) for name in "ab"])
    assert all("the engine call failed (out of memory)" in error_of(result, "INTERNAL") for result in results)
    assert renderer.metrics.snapshot()["render.crashed"] == 1


def test_close_forgets_a_session_unless_it_is_of_an_older_epoch(bench: Bench) -> None:
    renderer = Renderer(bench.engines)
    renderer.render([bench.spoken("a", 0)])
    renderer.close("a", 0)
    assert len(renderer) == 1
    renderer.close("a", 1)
    renderer.close("a", 1)
    assert len(renderer) == 0
