"""How many sessions an engine directory carries on this machine: measured step costs through the planner's simulation.

The launcher asks before it starts a server; the measurement (six seconds) is kept next to the engines.
`runtime.budget.admission` keeps the books over the answer.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from engine_builder.manifest import GPU_TARGETS, Manifest

from ..runtime.budget.admission import usual_history
from ..runtime.budget.costs import CostTable
from ..runtime.budget.probe import load_costs
from ..runtime.duplex.options import OptionLimits
from .policies import step_level
from .simulate import capacity
from .workload import Workload

SIMULATED_SECONDS = 12.0


def measured_costs(directory: Path, threads: int, device: str = "") -> CostTable | None:
    """The step costs kept for these engines on this machine, measured now if there are none. None: that failed, and
    the measuring process has said why.

    It runs in a process of its own, so that the launcher loads no engine.
    """
    costs = load_costs(directory, threads, device)
    if costs is None:
        options = {"--engines": str(directory), "--threads": str(threads), "--device": device}
        command = [sys.executable, "-m", "triton_models.measure", *(word for pair in options.items() for word in pair)]
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
        costs = load_costs(directory, threads, device)
    return costs


def sessions_on_time(costs: CostTable, manifest: Manifest, pages: int, limit: int, device: str = "") -> int:
    """Sessions with default options that keep 99% of their units on time, at most `limit`; 0: not even one does.

    `pages`: of the KV pool.  `device`: of GPU engines, as for `service.load`.
    """
    config = manifest.model
    load = Workload(
        seconds=SIMULATED_SECONDS,
        # Roles that share a GPU take turns on it; on CPUs each has a processor of its own.
        devices=1 if manifest.target in GPU_TARGETS and "," not in device else 2,
        solver_steps=config.solver.steps,
        history=usual_history(config, OptionLimits.of(manifest).retention, pages, manifest.limits["page_tokens"]),
        overhead=1.0,  # a BLS hop on a CPU (reference figures: 0.7 to 1.0 ms)
    )
    return capacity(load, costs, step_level(manifest.limits["max_batch"]), seeds=2, limit=limit)
