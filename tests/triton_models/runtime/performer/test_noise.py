"""The noise: a pure function of seed, unit and element, and normally distributed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_builder.presets import preset
from triton_models.runtime.performer import noise

pytestmark = pytest.mark.unit


@given(
    seed=st.integers(0, noise.MAX_SEED),
    unit=st.integers(0, 10**9),
    start=st.integers(0, 300),
    count=st.integers(0, 50),
    more=st.integers(0, 50),
)
def test_an_element_depends_on_its_index_alone(seed: int, unit: int, start: int, count: int, more: int) -> None:
    whole = noise.gaussian(seed, unit, start + count + more)
    part = noise.gaussian(seed, unit, count, start)
    assert part.dtype == np.float32
    np.testing.assert_array_equal(part, whole[start : start + count])


def test_it_is_standard_normal() -> None:
    n = 400_000
    x = noise.gaussian(7, 3, n).astype(np.float64)
    # Standard errors of mean, variance, kurtosis and lag-1 correlation are 1, sqrt(2), sqrt(24) and 1 over sqrt(n).
    bound = 5 / np.sqrt(n)
    assert abs(x.mean()) < bound
    assert abs(x.var() - 1) < bound * np.sqrt(2)
    assert abs((x**4).mean() - 3) < bound * np.sqrt(96)
    assert abs((x[:-1] * x[1:]).mean()) < bound
    assert abs((x[0::2] * x[1::2]).mean()) < bound * np.sqrt(2)
    for limit, share in ((1.0, 0.682689), (2.0, 0.954500), (3.0, 0.997300)):
        assert abs((np.abs(x) < limit).mean() - share) < 5 * np.sqrt(share * (1 - share) / n)


def test_seeds_and_units_give_unrelated_streams() -> None:
    streams = [noise.gaussian(seed, unit, 4096) for seed, unit in ((0, 0), (0, 1), (1, 0), (1, 1), (2**64 - 1, 0))]
    correlation = np.corrcoef(np.stack(streams))
    assert np.abs(correlation - np.eye(len(streams))).max() < 5 / np.sqrt(4096)


def test_a_pinned_value_guards_replays_across_versions() -> None:
    expected = [1.0010688, 0.9402071, -0.07562146, 0.38429394]
    np.testing.assert_allclose(noise.gaussian(1234, 56, 4), expected, rtol=1e-6)


def test_latents_are_the_flat_sequence_cut_in_two() -> None:
    config = preset("tiny")
    video, audio = noise.latents(config, 5, 9)
    assert video.shape == (config.video.tokens, config.video.latent_dim)
    assert audio.shape == (config.audio.tokens, config.audio.latent_dim)
    flat = noise.gaussian(5, 9, video.size + audio.size)
    np.testing.assert_array_equal(np.concatenate([video.ravel(), audio.ravel()]), flat)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0, 4), "seed: expected 0 to"),
        ((2**64, 0, 4), "seed: expected 0 to"),
        ((0, -1, 4), "unit: expected 0 to"),
        ((0, 0, -1), "count: expected >= 0, got -1"),
        ((0, 0, 4, -2), "start: expected 0 to"),
    ],
)
def test_numbers_out_of_range_are_named(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        noise.gaussian(*arguments)
