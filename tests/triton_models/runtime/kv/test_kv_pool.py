"""The KV pool in host memory: what is written is there, and nothing else changes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from engine_builder.config import BackboneConfig, ModelConfig
from triton_models.runtime.kv.pool import HostPool, PoolError

pytestmark = pytest.mark.unit

CONFIG = ModelConfig(
    backbone=BackboneConfig(hidden_size=8, layers=2, heads=2, kv_heads=1, head_dim=4, intermediate_size=8)
)


@dataclass(frozen=True)
class Run:
    page: int
    offset: int
    count: int


def new_tokens(count: int) -> tuple[np.ndarray, np.ndarray]:
    k = np.arange(2 * count * 4, dtype=np.float32).reshape(2, count, 1, 4) + 1
    return k, -k


def test_what_is_written_is_there_until_it_is_scrubbed() -> None:
    pool = HostPool(CONFIG, num_pages=4, page_tokens=3)
    assert pool.k.shape == pool.v.shape == (2, 4, 3, 1, 4)
    assert not pool.k.any()
    k, v = new_tokens(5)
    pool.write([Run(2, 1, 2), Run(3, 0, 2)], k, v, np.array([0, 1, 2, 4]))
    np.testing.assert_array_equal(pool.k[:, 2, 1:3], k[:, :2])
    np.testing.assert_array_equal(pool.v[:, 3, :2], v[:, [2, 4]])
    assert not pool.k[:, :2].any()
    assert not pool.k[:, 2, 0].any()
    pool.scrub([2])
    assert not pool.k[:, 2].any()
    assert not pool.v[:, 2].any()
    assert pool.k[:, 3, 0].all()
    assert pool.geometry.bytes == pool.k.nbytes + pool.v.nbytes


def test_write_refuses_spans_that_do_not_fit() -> None:
    pool = HostPool(CONFIG, 4, 3)
    k, v = new_tokens(2)
    both = np.arange(2)
    with pytest.raises(ValueError, match="spans: expected room for 2 tokens, got 1"):
        pool.write([Run(1, 0, 1)], k, v, both)
    for bad in (Run(0, 0, 2), Run(4, 0, 2), Run(1, 2, 2), Run(1, -1, 2)):
        with pytest.raises(ValueError, match=r"spans: expected pages 1\.\.3 of 3 tokens"):
            pool.write([bad], k, v, both)
    with pytest.raises(ValueError, match=r"pages: expected 1\.\.3, got 0"):
        pool.scrub([0])
    assert not pool.k.any()


@pytest.mark.parametrize(("pages", "tokens", "expected"), [(1, 3, "num_pages"), (4, 0, "page_tokens")])
def test_a_pool_has_pages(pages: int, tokens: int, expected: str) -> None:
    with pytest.raises(PoolError, match=f"{expected}: expected at least"):
        HostPool(CONFIG, pages, tokens)


def test_a_pool_larger_than_the_memory_is_refused() -> None:
    with pytest.raises(PoolError, match="lower the number of pages"):
        HostPool(CONFIG, 10**12, 16)
