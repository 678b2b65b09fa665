"""The performer over the solver bank does what it does over host memory: the same joins, jumps and leaves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from engine_builder.build import BuildOptions, build_engines
from engine_builder.checkpoint import random_model, save_checkpoint
from engine_builder.presets import preset
from triton_models.gpu.torch_cuda.solver_bank import SolverBank
from triton_models.runtime.budget.costs import CostTable
from triton_models.runtime.engines.engine import PERFORMER_STEPS
from triton_models.runtime.engines.solver import HostSolver
from triton_models.runtime.kv.pages import Span
from triton_models.runtime.messages import CloseJob, HistoryView, PerformJob, PerformResult
from triton_models.runtime.performer.performer import Performer
from triton_models.runtime.performer.scheduler import StepScheduler
from triton_models.service.load import load_engines

pytestmark = pytest.mark.engine
MS, HOUR = 1_000_000, 3_600_000_000_000
PAGES, PAGE_TOKENS = 9, 8
VIEWS = {  # ragged histories; one is empty
    "a": HistoryView(np.array([3, 5]), np.array([[0, 8], [0, 3]])),
    "b": HistoryView(np.array([0]), np.array([[0, 0]])),
    "c": HistoryView(np.array([7, 1, 8]), np.array([[5, 8], [0, 8], [0, 1]])),
    "d": HistoryView(np.array([2]), np.array([[2, 7]])),
}


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    tiny, root = preset("tiny"), tmp_path_factory.mktemp("bank")
    backbone = replace(tiny.backbone, hidden_size=32, layers=2, heads=4, kv_heads=2, head_dim=16, intermediate_size=48)
    save_checkpoint(random_model(replace(tiny, backbone=backbone), 0), root / "checkpoint")
    options = BuildOptions(
        target="torch-cuda", precision="float32", max_batch=2, max_pages=4, pool_pages=PAGES, page_tokens=PAGE_TOKENS
    )
    build_engines(root / "checkpoint", root / "engines", options)
    return load_engines(root / "engines", PERFORMER_STEPS, device="cpu")


@pytest.fixture
def pool(engines):
    config, rng = engines.config, np.random.default_rng(2)
    pool = engines.target.pool("both", "", config, PAGES, PAGE_TOKENS)
    b, tokens = config.backbone, (PAGES - 1) * PAGE_TOKENS
    k, v = rng.standard_normal((2, b.layers, tokens, b.kv_heads, b.head_dim), dtype=np.float32)
    pool.write([Span(page, 0, PAGE_TOKENS) for page in range(1, PAGES)], k, v, np.arange(tokens))
    yield pool
    pool.close()


def drive(performer: Performer, clock: list[int]) -> dict[str, PerformResult]:
    """Joins between ticks, more rows than a batch takes, one that leaves, one that is late and jumps."""

    def job(name: str, steps: int, deadline: int = HOUR) -> PerformJob:
        return PerformJob(name, 1, 0, ord(name), steps, deadline, 3, VIEWS[name])

    done: dict[str, PerformResult] = {}
    joins = {0: [job("a", 3), job("d", 4, HOUR + 2)], 1: [job("b", 2, HOUR + 1)], 2: [job("c", 4, 55 * MS)]}
    for tick in range(20):
        for new in joins.get(tick, ()):
            performer.join(new)
        if tick == 3:
            performer.leave(CloseJob("d", 1))
        for finished, result in performer.tick():
            assert isinstance(result, PerformResult), result
            done[finished.session] = result
        clock[0] += 10 * MS
    assert performer.pending == 0
    return done


def test_bank_and_host_memory_give_the_same_units(engines, pool):
    results = []
    for kind in (SolverBank, HostSolver):
        solver = engines.target.solver(engines["perform"], pool, 4)
        if kind is HostSolver:
            solver = HostSolver(engines["perform"].run, pool, pool.geometry.head_dim, 4)
        assert isinstance(solver, kind)
        clock = [0]
        scheduler = StepScheduler(CostTable.linear({"perform": (10.0, 0.0)}), engines.max_batch)
        performer = Performer(engines, pool, scheduler, lambda clock=clock: clock[0], solver)
        results.append(drive(performer, clock))
    bank, host = results
    assert set(bank) == set(host) == {"a", "b", "c"}
    assert {name: result.steps for name, result in bank.items()} == {name: r.steps for name, r in host.items()}
    assert bank["c"].steps < 4  # it jumped
    for name, ours in bank.items():
        np.testing.assert_allclose(ours.z_video, host[name].z_video, atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(ours.z_audio, host[name].z_audio, atol=1e-5, rtol=1e-5)
