"""The KV pool: one named piece of shared memory, the right one, and nothing of it left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from engine_builder.config import BackboneConfig, ModelConfig
from triton_models.runtime.kv import pool as kv_pool
from triton_models.runtime.kv.pool import KVPool, PoolError

pytestmark = pytest.mark.unit

CONFIG = ModelConfig(
    backbone=BackboneConfig(hidden_size=8, layers=2, heads=2, kv_heads=1, head_dim=4, intermediate_size=8)
)


@dataclass(frozen=True)
class Run:
    page: int
    offset: int
    count: int


@pytest.fixture
def name() -> str:
    return f"wst-test-{os.getpid()}"


def new_tokens(count: int) -> tuple[np.ndarray, np.ndarray]:
    k = np.arange(2 * count * 4, dtype=np.float32).reshape(2, count, 1, 4) + 1
    return k, -k


def test_what_is_written_is_read_in_the_other_mapping(name: str) -> None:
    with KVPool.create(name, CONFIG, num_pages=4, page_tokens=3) as pool:
        reader = KVPool.open(name, CONFIG)
        assert pool.k.shape == reader.v.shape == (2, 4, 3, 1, 4)
        assert not pool.k.any()
        k, v = new_tokens(5)
        pool.write([Run(2, 1, 2), Run(3, 0, 2)], k, v, np.array([0, 1, 2, 4]))
        np.testing.assert_array_equal(reader.k[:, 2, 1:3], k[:, :2])
        np.testing.assert_array_equal(reader.v[:, 3, :2], v[:, [2, 4]])
        assert not reader.k[:, :2].any()
        assert not reader.k[:, 2, 0].any()
        pool.scrub([2])
        assert not reader.k[:, 2].any()
        assert not reader.v[:, 2].any()
        assert reader.k[:, 3, 0].all()
        reader.close()


def test_the_reader_cannot_write(name: str) -> None:
    with KVPool.create(name, CONFIG, 4, 3):
        reader = KVPool.open(name, CONFIG)
        assert reader.k.flags.c_contiguous
        with pytest.raises(ValueError, match="read-only"):
            reader.k[0] = 1
        reader.close()


def test_write_refuses_spans_that_do_not_fit(name: str) -> None:
    with KVPool.create(name, CONFIG, 4, 3) as pool:
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


def test_a_taken_name_a_missing_pool_and_a_bad_name_are_refused(name: str) -> None:
    with pytest.raises(PoolError, match="made by the thinker, got no such file"):
        KVPool.open(name, CONFIG)
    with KVPool.create(name, CONFIG, 4, 3), pytest.raises(PoolError, match="expected an unused name"):
        KVPool.create(name, CONFIG, 4, 3)
    for bad in ("", "../etc", "a/b", ".hidden"):
        with pytest.raises(PoolError, match="pool name: expected letters"):
            KVPool.create(bad, CONFIG, 4, 3)


def test_a_pool_of_another_model_is_refused(name: str) -> None:
    other = ModelConfig(
        backbone=BackboneConfig(hidden_size=8, layers=3, heads=2, kv_heads=1, head_dim=4, intermediate_size=8)
    )
    with KVPool.create(name, other, 4, 3), pytest.raises(PoolError, match=r"expected .*layers=2.* got .*layers=3"):
        KVPool.open(name, CONFIG)


def test_something_that_is_no_pool_is_refused(name: str) -> None:
    path = kv_pool.SHM_DIRECTORY / name
    for content in (b"", b"\0" * 8192, b"something else entirely" * 10):
        path.write_bytes(content)
        try:
            with pytest.raises(PoolError, match="expected a KV pool"):
                KVPool.open(name, CONFIG)
        finally:
            path.unlink()


def test_a_damaged_or_truncated_pool_is_refused(name: str) -> None:
    path = kv_pool.SHM_DIRECTORY / name
    with KVPool.create(name, CONFIG, 4, 3) as pool:
        os.truncate(path, pool.geometry.total_bytes - 4096)
        with pytest.raises(PoolError, match="bytes, got"):
            KVPool.open(name, CONFIG)
        data = path.read_bytes()
        path.write_bytes(data.replace(b'"num_pages": 4', b'"num_pages": 9'))
        with pytest.raises(PoolError, match="damaged header"):
            KVPool.open(name, CONFIG)


def test_too_large_a_pool_is_refused_before_anything_is_made(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_pool, "free_bytes", lambda: 2**20)
    with pytest.raises(PoolError, match=r"expected .* MiB free in /dev/shm for 100000 pages .* got 1\.0 MiB"):
        KVPool.create(name, CONFIG, num_pages=100_000, page_tokens=16)
    assert not (kv_pool.SHM_DIRECTORY / name).exists()


def test_an_allocation_that_fails_leaves_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(PoolError, match=r"cannot allocate .*No space left"):
        KVPool.create(name, CONFIG, 4, 3)
    assert not (kv_pool.SHM_DIRECTORY / name).exists()


@pytest.mark.parametrize(("pages", "tokens"), [(1, 16), (4, 0)])
def test_impossible_geometry_is_refused(name: str, pages: int, tokens: int) -> None:
    with pytest.raises(PoolError, match="expected at least"):
        KVPool.create(name, CONFIG, pages, tokens)


def test_close_and_unlink_may_be_called_twice_and_views_outlive_close(name: str) -> None:
    pool = KVPool.create(name, CONFIG, 4, 3)
    view = pool.k[:, 1]
    pool.close()
    pool.close()
    view[:] = 1  # still mapped, since somebody holds it
    assert pool.k.size == 0
    pool.unlink()
    pool.unlink()
    assert not kv_pool.unlink(name)


def test_a_process_that_attaches_neither_warns_nor_unlinks(name: str) -> None:
    """What multiprocessing.shared_memory does in Python < 3.13 when an attached process exits."""
    code = (
        "import sys; from pathlib import Path\n"
        "from engine_builder.config import ModelConfig\n"
        "from triton_models.runtime.kv.pool import KVPool\n"
        "pool = KVPool.open(sys.argv[1], ModelConfig())\n"
        "print(float(pool.k[0, 1, 0, 0, 0]))\n"
        "pool.unlink()\n"  # not its own: does nothing
    )
    root = Path(kv_pool.__file__).parents[3]
    with KVPool.create(name, ModelConfig(), 4, 16) as pool:
        pool.k[0, 1, 0, 0, 0] = 7
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code, name], capture_output=True, text=True, timeout=60, cwd=root
        )
        assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "7.0", "")
        assert (kv_pool.SHM_DIRECTORY / name).exists()
    assert not (kv_pool.SHM_DIRECTORY / name).exists()
