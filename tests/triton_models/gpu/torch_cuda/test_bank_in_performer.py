"""The performer over the solver bank does what it does over host memory: the same joins, jumps and leaves. And over a
group of two ranks, the other of which is a process that gloo joins to this one."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from engine_builder.build import BuildOptions, build_engines
from engine_builder.checkpoint import random_model, save_checkpoint
from engine_builder.config import ModelConfig
from engine_builder.presets import preset
from triton_models.gpu.torch_cuda.solver_bank import SolverBank
from triton_models.runtime.budget.costs import CostTable
from triton_models.runtime.engines.engine import PERFORMER_STEPS, EngineSet
from triton_models.runtime.engines.solver import HostSolver, Solver
from triton_models.runtime.kv.pages import Span
from triton_models.runtime.kv.pool import Pool
from triton_models.runtime.messages import CloseJob, HistoryView, PerformJob, PerformResult, SessionError
from triton_models.runtime.performer.performer import Performer
from triton_models.runtime.performer.scheduler import StepScheduler
from triton_models.service.load import load_engines

if TYPE_CHECKING:
    import psutil  # a bare GPU machine collects this file, and has none

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
def directory(tmp_path_factory):
    tiny, root = preset("tiny"), tmp_path_factory.mktemp("bank")
    backbone = replace(tiny.backbone, hidden_size=32, layers=2, heads=4, kv_heads=2, head_dim=16, intermediate_size=48)
    save_checkpoint(random_model(replace(tiny, backbone=backbone), 0), root / "checkpoint")
    options = BuildOptions(
        target="torch-cuda", precision="float32", max_batch=2, max_pages=4, pool_pages=PAGES, page_tokens=PAGE_TOKENS
    )
    build_engines(root / "checkpoint", root / "engines", options)
    return root / "engines"


@pytest.fixture(scope="module")
def engines(directory):
    return load_engines(directory, PERFORMER_STEPS, device="cpu")


@pytest.fixture
def pool(engines):
    with contextlib.closing(engines.target.pool("both", "", engines.config, PAGES, PAGE_TOKENS)) as pool:
        fill(pool, engines.config)
        yield pool


def fill(pool: Pool, config: ModelConfig) -> None:
    b, tokens, rng = config.backbone, (PAGES - 1) * PAGE_TOKENS, np.random.default_rng(2)
    k, v = rng.standard_normal((2, b.layers, tokens, b.kv_heads, b.head_dim), dtype=np.float32)
    pool.write([Span(page, 0, PAGE_TOKENS) for page in range(1, PAGES)], k, v, np.arange(tokens))


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
    bank = engines.target.solver(engines["perform"], pool, 4)
    assert isinstance(bank, SolverBank)
    host = HostSolver(engines["perform"].run, pool, pool.geometry.head_dim, 4)
    equal(perform(engines, pool, bank), perform(engines, pool, host))


def test_a_group_of_two_ranks_gives_the_same_units(directory, engines, pool):
    """The thinker's pool writes to those of both ranks, each of which gets its heads."""
    import psutil

    expected = perform(engines, pool, engines.target.solver(engines["perform"], pool, 4))
    (group, rank), link = start_group(directory), f"wst-test-{os.getpid()}-group"
    try:
        size = group.config, PAGES, PAGE_TOKENS
        own = group.target.pool("performer", link, *size)
        solver = group.target.solver(group["perform"], own, 4)
        assert own.k.shape[3] == 1, "of two heads"
        with contextlib.closing(group.target.pool("thinker", link, *size)) as thinker:
            fill(thinker, group.config)
            equal(perform(group, own, solver), expected)
            thinker.scrub(range(1, PAGES))
        assert group.target.fault() == ""
        for process in (psutil.Process(), rank):
            assert {c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN} <= {
                "127.0.0.1"
            }
    finally:
        group.target.close()
    assert not rank.is_running()
    own.close()
    assert not [name for name in os.listdir("/dev/shm") if name.startswith(link)]


def test_neither_side_waits_for_one_that_is_gone(directory):
    """A rank ends with its socket, as it does when rank 0 dies; rank 0 says so, and solves nothing any more."""
    group, rank = start_group(directory)
    pool = group.target.pool("performer", "", group.config, PAGES, PAGE_TOKENS)
    try:
        solver = group.target.solver(group["perform"], pool, 4)
        group.target.ranks._ranks[0].socket.shutdown(socket.SHUT_RDWR)
        # Not `psutil.STATUS_ZOMBIE`: that it is from the end of its first thread, and can be reaped after its last.
        os.waitid(os.P_PID, rank.pid, os.WEXITED | os.WNOWAIT)
        performer = Performer(group, pool, scheduler(group), lambda: 0, solver)
        with pytest.raises(SessionError, match="rank 1 of the performer group"):
            performer.join(PerformJob("a", 1, 0, 1, 2, HOUR, 3, VIEWS["a"]))
        assert re.fullmatch(rf"rank 1 of the performer group \(pid {rank.pid}\) has ended with 1", group.target.fault())
    finally:
        group.target.close()
        pool.close()


def start_group(directory: Path) -> tuple[EngineSet, psutil.Process]:
    """The engines of rank 0, and the other rank."""
    import psutil

    before = set(psutil.Process().children())
    engines = load_engines(directory, PERFORMER_STEPS, device="cpu,cpu,cpu")
    (rank,) = set(psutil.Process().children()) - before
    return engines, rank


def scheduler(engines: EngineSet) -> StepScheduler:
    return StepScheduler(CostTable.linear({"perform": (10.0, 0.0)}), engines.max_batch)


def perform(engines: EngineSet, pool: Pool, solver: Solver) -> dict[str, PerformResult]:
    clock = [0]
    return drive(Performer(engines, pool, scheduler(engines), lambda: clock[0], solver), clock)


def equal(bank: dict[str, PerformResult], host: dict[str, PerformResult]) -> None:
    assert set(bank) == set(host) == {"a", "b", "c"}
    assert {name: result.steps for name, result in bank.items()} == {name: r.steps for name, r in host.items()}
    assert bank["c"].steps < 4  # it jumped
    for name, ours in bank.items():
        np.testing.assert_allclose(ours.z_video, host[name].z_video, atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(ours.z_audio, host[name].z_audio, atol=1e-5, rtol=1e-5)
