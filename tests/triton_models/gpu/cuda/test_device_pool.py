"""The GPU pool's logic over host memory, and its CUDA calls against the real bindings' signatures."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os

import fake_cuda
import numpy as np
import pytest
import torch

from engine_builder.presets import preset
from triton_models.gpu.cuda import cuda_runtime
from triton_models.gpu.cuda.cuda_runtime import CudaError, CudaRuntime, DeviceArray
from triton_models.gpu.cuda.device_pool import SHM_DIRECTORY, DevicePool, MirroredPool, PoolCard
from triton_models.runtime.kv.pages import Span
from triton_models.runtime.kv.pool import HostPool, PoolError

pytestmark = pytest.mark.unit
CONFIG = preset("tiny")
PAGES, PAGE_TOKENS = 6, 4
SPANS = [Span(2, 3, 1), Span(4, 0, 4), Span(1, 1, 2)]
TOKENS = np.array([0, 1, 2, 5, 6, 7, 9])  # runs that do not end where the spans do


@pytest.fixture
def cuda():
    return CudaRuntime(api=fake_cuda.FakeCuda())


@pytest.fixture
def name():
    return f"wst-test-{os.getpid()}-gpu"


def contents(array: DeviceArray) -> np.ndarray:
    kind = {"float32": np.float32, "bfloat16": np.uint16}[array.dtype]
    data = ctypes.string_at(array.pointer, math.prod(array.shape) * array.item_bytes)
    return np.frombuffer(data, dtype=kind).reshape(array.shape)


def new_kv(tokens: int = 12) -> list[np.ndarray]:
    b, rng = CONFIG.backbone, np.random.default_rng(0)
    return [rng.standard_normal((b.layers, tokens, b.kv_heads, b.head_dim), dtype=np.float32) for _ in range(2)]


def test_it_holds_what_the_pool_of_a_cpu_holds(cuda, name):
    k, v = new_kv()
    expected = HostPool(CONFIG, PAGES, PAGE_TOKENS)
    with DevicePool.create(CONFIG, PAGES, PAGE_TOKENS, "float32", cuda, name) as pool:
        for p in (expected, pool):
            p.write(SPANS, k, v, TOKENS)
            p.scrub([4])
        assert (contents(pool.k) == expected.k).all()
        assert (contents(pool.v) == expected.v).all()
        assert contents(pool.k).any()
        path = SHM_DIRECTORY / name
        assert path.exists()
    assert not path.exists()
    assert cuda.api.used() == 0


def test_layers_that_lie_further_apart_than_a_pitch_may_be(cuda, name, monkeypatch):
    k, v = new_kv()
    with DevicePool.create(CONFIG, PAGES, PAGE_TOKENS, "float32", cuda, name) as pool:
        pool.write(SPANS, k, v, TOKENS)
        pool.scrub([4])
        expected = contents(pool.k).copy()
    monkeypatch.setattr(cuda_runtime, "MAX_PITCH", 100)
    cuda.api.calls.clear()
    with DevicePool.create(CONFIG, PAGES, PAGE_TOKENS, "float32", cuda, name) as pool:
        pool.write(SPANS, k, v, TOKENS)
        pool.scrub([4])
        assert (contents(pool.k) == expected).all()
    assert "cudaMemcpy2DAsync" not in cuda.api.calls


def test_device_rows_are_copied_without_the_host(cuda, name):
    """K and V of an engine, [L, B, T, G, D]: row 1 of the batch, as a view."""
    b, (k, v) = CONFIG.backbone, new_kv()
    out = [cuda.allocate((b.layers, 3, 12, b.kv_heads, b.head_dim), "float32") for _ in range(2)]
    for array, values in zip(out, (k, v), strict=True):
        stacked = np.stack([np.zeros_like(values), values, values * 9], axis=1)
        ctypes.memmove(array.pointer, stacked.ctypes.data, stacked.nbytes)
    with DevicePool.create(CONFIG, PAGES, PAGE_TOKENS, "float32", cuda, name) as pool:
        pool.write(SPANS, *(array.row(1, 1) for array in out), TOKENS)
        assert (contents(pool.k)[:, 2, 3] == k[:, 0]).all()
        assert (contents(pool.v)[:, 4] == v[:, [1, 2, 5, 6]]).all()
        assert (contents(pool.v)[:, 1, 1:3] == v[:, [7, 9]]).all()
        assert not contents(pool.k)[:, 0].any()


def test_bfloat16_is_rounded_like_torch_rounds(cuda, name):
    k, v = new_kv()
    with DevicePool.create(CONFIG, PAGES, PAGE_TOKENS, "bfloat16", cuda, name) as pool:
        pool.write([Span(3, 0, 4)], k, v, np.arange(4))
        got = torch.from_numpy(contents(pool.k)[:, 3].astype(np.int32)).short().view(torch.bfloat16)
        assert got.equal(torch.from_numpy(k[:, :4]).bfloat16())


def test_another_process_maps_the_same_pages(cuda, name):
    with DevicePool.create(CONFIG, PAGES, PAGE_TOKENS, "float32", cuda, name) as pool:
        reader = DevicePool.open(name, CONFIG, CudaRuntime(api=cuda.api))
        assert (reader.k.pointer, reader.v.pointer) == (pool.k.pointer, pool.v.pointer)
        assert reader.k.shape == (CONFIG.backbone.layers, PAGES, PAGE_TOKENS, 2, 64)
        reader.close()
        reader.close()
        assert (SHM_DIRECTORY / name).exists()
        assert cuda.api.imports == []


def test_two_devices_mirror_what_is_written(cuda, name):
    k, v = new_kv()
    with (
        DevicePool.create(CONFIG, PAGES, PAGE_TOKENS, "float32", cuda, name) as local,
        DevicePool.create(CONFIG, PAGES, PAGE_TOKENS, "float32", cuda, f"{name}-b") as remote,
    ):
        pool = MirroredPool(local, remote)
        pool.write(SPANS, k, v, TOKENS)
        assert contents(remote.k).any()
        assert (contents(remote.k) == contents(local.k)).all()
        assert (contents(remote.v) == contents(local.v)).all()
        cuda.api.calls.clear()
        remote.copy_spans(local, [Span(3, 0, 2)])
        assert cuda.api.calls == ["cudaMemcpy2DAsync"] * 2 + ["cudaStreamSynchronize"]  # k and v, all layers at once
        pool.scrub([4, 1, 2])
        assert not contents(remote.v).any()


def test_every_rank_gets_its_heads(cuda, name):
    k, v = new_kv()
    with (
        DevicePool.create(CONFIG, PAGES, PAGE_TOKENS, "float32", cuda, name) as local,
        DevicePool.create(CONFIG, PAGES, PAGE_TOKENS, "float32", cuda, f"{name}-b", ranks=2) as first,
        DevicePool.create(CONFIG, PAGES, PAGE_TOKENS, "float32", cuda, f"{name}-c", ranks=2) as second,
    ):
        pool = MirroredPool(local, first, second)
        pool.write(SPANS, k, v, TOKENS)
        for whole, parts in ((local.k, (first.k, second.k)), (local.v, (first.v, second.v))):
            assert (np.concatenate([contents(part) for part in parts], axis=3) == contents(whole)).all()
        assert contents(second.v).any()
        pool.scrub([4, 1, 2])
        assert not contents(second.v).any()


def test_pools_that_differ_are_not_mirrored(cuda, name):
    with (
        DevicePool.create(CONFIG, PAGES, PAGE_TOKENS, "float32", cuda, name) as local,
        DevicePool.create(CONFIG, PAGES + 1, PAGE_TOKENS, "float32", cuda, f"{name}-b") as remote,
        pytest.raises(PoolError, match="expected PoolGeometry"),
    ):
        MirroredPool(local, remote)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([Span(1, 0, 3)], "expected room for 4 tokens, got 3"),
        ([Span(0, 0, 4)], "expected pages 1..5 of 4 tokens"),
        ([Span(6, 0, 4)], "expected pages 1..5 of 4 tokens"),
        ([Span(1, 1, 4)], "expected pages 1..5 of 4 tokens"),
    ],
)
def test_places_outside_the_pool_are_refused(cuda, name, spans, message):
    with DevicePool.create(CONFIG, PAGES, PAGE_TOKENS, "float32", cuda, name) as pool:
        with pytest.raises(ValueError, match=message):
            pool.write(spans, *new_kv(), np.arange(4))
        with pytest.raises(ValueError, match=r"pages: expected 1\.\.5, got 0"):
            pool.scrub([0])
        wrong = cuda.allocate((6, 4, 2, 64), "bfloat16")
        with pytest.raises(ValueError, match="k_new, v_new: expected float32"):
            pool.write([Span(1, 0, 4)], wrong, wrong, np.arange(4))


def test_names_and_owners(cuda, name):
    with pytest.raises(PoolError, match="pool name: expected letters"):
        DevicePool.create(CONFIG, PAGES, PAGE_TOKENS, "float32", cuda, "../etc")
    with pytest.raises(PoolError, match="got no such file"):
        DevicePool.open(name, CONFIG, cuda)
    with DevicePool.create(CONFIG, PAGES, PAGE_TOKENS, "float32", cuda, name):
        with pytest.raises(PoolError, match="expected an unused name"):
            DevicePool.create(CONFIG, PAGES, PAGE_TOKENS, "float32", cuda, name)
        with pytest.raises(PoolError, match="expected PoolGeometry"):
            DevicePool.open(name, preset("v0.1-0.6b"), cuda)


def test_a_full_device_leaves_nothing_behind(name):
    cuda = CudaRuntime(api=fake_cuda.FakeCuda(memory=100_000))
    with pytest.raises(PoolError, match=r"expected .* GiB of device memory .* cudaErrorMemoryAllocation"):
        DevicePool.create(CONFIG, 20, PAGE_TOKENS, "float32", cuda, name)
    assert cuda.api.used() == 0
    assert not (SHM_DIRECTORY / name).exists()


def test_damaged_cards_are_refused(cuda, name):
    with DevicePool.create(CONFIG, PAGES, PAGE_TOKENS, "float32", cuda, name):
        data = bytearray((SHM_DIRECTORY / name).read_bytes())
        data[-2] ^= 1
        with pytest.raises(PoolError, match="got a damaged one"):
            PoolCard.unpack(name, bytes(data))
        with pytest.raises(PoolError, match="expected a GPU pool"):
            PoolCard.unpack(name, b"WSTKVP01" + bytes(100))


def test_arrays_name_their_interface():
    array = DeviceArray.packed(4096, (2, 3, 4), "bfloat16")
    assert array.row(1, 2) == array[:, 2]
    assert array[:, 2].pointer == 4096 + 2 * 4 * 2
    assert array.row(1, 2).__cuda_array_interface__ == {
        "shape": (2, 4),
        "typestr": "<i2",
        "data": (4112, False),
        "strides": (24, 2),
        "version": 3,
    }
    with pytest.raises(IndexError, match="axis 1: expected 0 to 2, got 3"):
        array.row(1, 3)
    with pytest.raises(IndexError, match=r"index: expected \[:, i\]"):
        array[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="these calls are meant to fail for want of a GPU")
def test_every_call_fits_the_real_bindings():
    """Without a driver each call ends in a CUDA status; a wrong number or type of arguments would be a TypeError."""
    runtime = pytest.importorskip("cuda.bindings.runtime")

    class Unstreamed(CudaRuntime):
        def __init__(self) -> None:
            self.api, self.device, self.stream = runtime, 0, 0

    cuda, array = Unstreamed(), DeviceArray.packed(0, (2, 3), "float32")
    calls = [
        lambda: CudaRuntime(),
        lambda: CudaRuntime.bind_thread(cuda),
        lambda: cuda("cudaStreamCreateWithPriority", runtime.cudaStreamNonBlocking, -1),
        lambda: cuda.allocate((2, 3), "float32"),
        lambda: cuda("cudaMemsetAsync", 0, 0, 16, 0),
        lambda: cuda.bus(),
        lambda: cuda.shareable((2, 3), "float32"),
        lambda: cuda.free(array),
        lambda: cuda.pinned(64),
        lambda: cuda.free_pinned(0),
        lambda: cuda.copy(0, 0, 8),
        lambda: cuda.copy_rows(0, 8, 0, 8, 8, 2),
        lambda: cuda.zero_rows(0, 8, 8, 2),
        lambda: cuda.synchronize(),
        lambda: cuda.export(array),
        lambda: cuda.import_(bytes(64), (2, 3), "float32"),
        lambda: cuda.close_import(array),
        lambda: cuda.begin_capture(),
        lambda: cuda.end_capture(),
        lambda: cuda("cudaGraphInstantiate", 0, 0),
        lambda: cuda.launch(0),
        lambda: cuda.free_graph(0),
        lambda: cuda.close(),
        lambda: cuda("cudaDeviceGetPCIBusId", 64, 0),
    ]
    for call in calls:
        with contextlib.suppress(CudaError):
            call()
