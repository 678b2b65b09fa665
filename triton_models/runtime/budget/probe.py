"""Measures what every step costs on this machine, over the batch sizes and histories that serving meets.

Runs once per engine directory and machine, before the server starts (`python -m triton_models.measure`), so that the
scheduler, admission and the planner share one table. Histories are as serving passes them: padded by whole summation
panels (`history.page_multiple`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from engine_builder.config import ModelConfig
from engine_builder.manifest import GPU_TARGETS, MANIFEST, Manifest

from ..engines.engine import EngineSet
from ..engines.inputs import Inputs, step_inputs
from ..engines.solver import Solver
from ..kv.pool import Pool
from ..kv.tables import page_multiple
from ..messages import HistoryView
from .costs import Cost, CostTable, measure

COSTS = "costs.csv"
MEASURED_ON = "costs.json"
SHORT_PAGES = 64  # the shorter of the two histories on a GPU; smaller ones cost the same
# The fastest call counts: whoever else uses the machine now will not be there for ever. Rounds lie seconds apart, so
# that a busy moment slows one of them.
ROUNDS, REPEATS = 3, 2

Progress = Callable[[str], None]


def load_costs(directory: Path, threads: int, device: str = "") -> CostTable | None:
    """The table kept for an engine directory; None if there is none or it was measured for something else."""
    for place in dict.fromkeys((directory, keeping_place(directory))):
        with contextlib.suppress(FileNotFoundError, ValueError):
            if json.loads((place / MEASURED_ON).read_text()) == _fingerprint(directory, threads, device):
                return CostTable.load(place / COSTS)
    return None


def keeping_place(directory: Path) -> Path:
    """Where costs are written: next to the engines, or if they are read-only (a container's volume), in the cache of
    this user, where nobody else can put any."""
    return directory if os.access(directory, os.W_OK) else private_place(directory)


def private_place(directory: Path) -> Path:
    """A folder for what belongs to these engines, in the cache of this user."""
    digest = hashlib.sha256((directory / MANIFEST).read_bytes()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "wan-streamer-triton" / "engines" / digest


def probe(
    engines: EngineSet,
    directory: Path,
    page_tokens: int,
    threads: int,
    progress: Progress = lambda step: None,
    device: str = "",
    performer: EngineSet | None = None,
) -> CostTable:
    """Measures all four steps of an engine directory, loaded as `engines`, and keeps the table in its `keeping_place`.

    `device`: that they were loaded for. `performer`: the steps of the performer, where it has a device of its own or
    several. PoolError if a GPU does not hold the pool.
    """
    manifest = engines.manifest
    if manifest is not None and manifest.target in GPU_TARGETS:
        table = CostTable(_on_device(engines, performer or engines, manifest.limits, progress))
    else:
        rounds = (_on_host(engines, page_tokens, progress, threads) for _ in range(ROUNDS))
        table = CostTable(_fastest(chain.from_iterable(rounds)))
    place = keeping_place(directory)
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    table.save(place / COSTS)
    (place / MEASURED_ON).write_text(json.dumps(_fingerprint(directory, threads, device), indent=2) + "\n")
    return table


def _fastest(costs: Iterable[Cost]) -> list[Cost]:
    """Of each call its quickest measurement."""
    best: dict[tuple[str, int, int], Cost] = {}
    for cost in costs:
        key = (cost.step, cost.batch, cost.history)
        best[key] = min(best.get(key, cost), cost, key=lambda each: each.ms)
    return list(best.values())


def _batches(engines: EngineSet) -> list[int]:
    return sorted({batch for batch in (1, 2, 4, engines.max_batch) if batch <= engines.max_batch})


def _rounded_batches(most: int) -> list[int]:
    """Both ends of every stair where calls are rounded up to a power of two: three rows cost what four do."""
    powers = [1 << n for n in range(most.bit_length())]
    return sorted({batch for power in powers for batch in (power, power + 1)} & set(range(1, most + 1)) | {most})


def _on_host(engines: EngineSet, page_tokens: int, progress: Progress, threads: int) -> list[Cost]:
    panel = page_multiple(page_tokens, engines.config.backbone.head_dim) * page_tokens
    # An engine of one thread runs in this one, whose processor time no busy neighbour can stretch.
    clock = time.thread_time_ns if threads == 1 else time.perf_counter_ns
    best = partial(measure, batches=_batches(engines), repeats=REPEATS, pick=min, clock_ns=clock)
    costs: list[Cost] = []
    for step in ("perceive", "render"):
        progress(step)
        costs += best(step, call=_caller(engines, step, step, 0, page_tokens))
    for name, step in (("think", "think"), ("slot", "think"), ("perform", "perform")):
        progress(name)
        for history in (panel, 4 * panel):
            costs += best(name, call=_caller(engines, name, step, history, page_tokens), history=history)
    return costs


def _on_device(engines: EngineSet, performer: EngineSet, limits: Mapping[str, int], progress: Progress) -> list[Cost]:
    """Over a pool of the device as it serves, with the shortest and the longest history that a row may have there."""
    config, batches = engines.config, _rounded_batches(engines.max_batch)
    best = partial(measure, batches=batches, repeats=ROUNDS * REPEATS, pick=min)
    costs: list[Cost] = []
    for step, role in (("perceive", engines), ("render", performer)):
        progress(step)
        costs += best(step, call=_codec_on_device(role, step, batches))
    page_tokens = int(limits["page_tokens"])
    size = config, int(limits["pool_pages"]), page_tokens
    pool = engines.target.pool("both", "", *size)
    noisy = pool if performer is engines else performer.target.pool("performer", "", *size)
    try:
        solver = performer.target.solver(performer["perform"], noisy, engines.max_batch)
        for pages in sorted({min(SHORT_PAGES, int(limits["max_pages"])), int(limits["max_pages"])}):
            history = pages * page_tokens
            for name in ("think", "slot"):
                progress(name)
                call = partial(_think_on_device, engines, pool, name, pages)
                costs += best(name, call=call, history=history)
            progress("perform")
            solving = SolverCall(config, solver, scattered_view(noisy, pages))
            costs += best("perform", call=solving, history=history)
            solving.close()
    finally:
        performer.target.close()
        for each in {id(p): p for p in (noisy, pool)}.values():
            each.close()
    return costs


def _codec_on_device(engines: EngineSet, step: str, batches: list[int]) -> Callable[[int], object]:
    """With states that stay where serving keeps them."""
    states = engines.target.states(engines[step], engines.start_state(step), max(batches))
    opened = [states.open() for _ in range(max(batches))]
    inputs = {b: step_inputs(engines.config, engines.state_sizes, step, b, 0) for b in batches}
    for each in inputs.values():
        del each["state"]
    return lambda batch: states.run(inputs[batch], opened[:batch])


def _think_on_device(engines: EngineSet, pool: Pool, name: str, pages: int, batch: int) -> object:
    view, history = scattered_view(pool, pages), pages * pool.geometry.page_tokens
    tables = {"page_table": np.tile(view.page_ids, (batch, 1)), "page_range": np.tile(view.ranges, (batch, 1, 1))}
    own = step_inputs(engines.config, engines.state_sizes, name, batch, history)
    return engines["think"].run({**own, **tables, "k_pool": pool.k, "v_pool": pool.v})


def scattered_view(pool: Pool, pages: int) -> HistoryView:
    """A history of whole pages in no order; a pool with fewer pages than that shows some of them twice."""
    geometry = pool.geometry
    order = np.random.default_rng(1).permutation(geometry.num_pages - 1).astype(np.int64) + 1
    ranges = np.tile(np.array([0, geometry.page_tokens], dtype=np.int64), (pages, 1))
    return HistoryView(np.resize(order, pages), ranges)


class SolverCall:
    """`call(batch)` of `costs.measure`: a solver step of no length for `batch` units over one history."""

    def __init__(self, config: ModelConfig, solver: Solver, view: HistoryView) -> None:
        self._config, self._solver, self._view = config, solver, view
        self._slots: list[int] = []

    def __call__(self, batch: int) -> None:
        while len(self._slots) < batch:
            inputs = step_inputs(self._config, {}, "perform", 1, 0)
            x_video, x_audio, cos, sin = (inputs[n][0] for n in ("x_video", "x_audio", "rope_cos", "rope_sin"))
            self._slots.append(self._solver.put(x_video, x_audio, cos, sin, self._view))
        self._solver.tick(self._slots[:batch], [0.5] * batch, [0.0] * batch)

    def close(self) -> None:
        """Gives the slots back."""
        while self._slots:
            self._solver.drop(self._slots.pop())


def _caller(engines: EngineSet, name: str, step: str, history: int, page_tokens: int) -> Callable[[int], object]:
    inputs: dict[int, Inputs] = {}

    def call(batch: int) -> object:
        if batch not in inputs:
            inputs.clear()  # one pool at a time
            own = step_inputs(engines.config, engines.state_sizes, name, batch, history)
            inputs[batch] = own | (_history(engines.config, batch, history, page_tokens) if history else {})
        return engines[step].run(inputs[batch])

    return call


def _history(config: ModelConfig, batch: int, history: int, page_tokens: int) -> Inputs:
    """Page tables over a pool of its own; pages of a row are scattered, as they are in service."""
    backbone = config.backbone
    pages = max(1, history // page_tokens)
    rng = np.random.default_rng(1)
    shape = (backbone.layers, batch * pages + 1, page_tokens, backbone.kv_heads, backbone.head_dim)
    pool = rng.standard_normal(shape, dtype=np.float32)
    ranges = np.zeros((batch, pages, 2), np.int64)
    ranges[..., 1] = page_tokens
    table = 1 + rng.permutation(batch * pages).reshape(batch, pages).astype(np.int64)
    return {"page_table": table, "page_range": ranges, "k_pool": pool, "v_pool": pool}


def _fingerprint(directory: Path, threads: int, device: str) -> dict[str, object]:
    """What a measurement is valid for."""
    manifest = hashlib.sha256((directory / MANIFEST).read_bytes()).hexdigest()
    facts = {"manifest_sha256": manifest, "processor": processor(), "cores": os.cpu_count(), "threads": threads}
    if Manifest.load(directory).target in GPU_TARGETS:
        from ..engines.devices import Devices  # a CPU needs nothing of it

        facts["device"] = Devices.parse(device).describe()
    return facts


def processor() -> str:
    """The name of this machine's processor."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return name
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
