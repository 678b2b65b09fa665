"""How many sessions an engine directory carries on this machine: measured step costs through the planner's simulation.

The launcher asks before it starts a server; the measurement (five seconds) is kept next to the engines.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from engine_builder.manifest import Manifest

from .policies import step_level
from .runtime.capacity import usual_history
from .runtime.cost_probe import load_costs
from .runtime.options import OptionLimits
from .simulate import capacity
from .workload import Workload

SIMULATED_SECONDS = 12.0


def measured_capacity(directory: Path, manifest: Manifest, threads: int, limit: int) -> int:
    """Sessions with default options that keep 99% of their units on time, at most `limit`; 0 if nothing was measured.

    Measures in a process of its own if there are no costs of this machine yet, so that the launcher loads no engine.
    """
    costs = load_costs(directory, threads)
    if costs is None:
        command = [
            sys.executable,
            "-m",
            "triton_models.measure",
            "--engines",
            str(directory),
            "--threads",
            str(threads),
        ]
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
        costs = load_costs(directory, threads)
        if costs is None:
            return 0
    config = manifest.model
    load = Workload(
        seconds=SIMULATED_SECONDS,
        solver_steps=config.solver.steps,
        history=usual_history(config, OptionLimits.of(manifest).retention),
        overhead=1.0,  # a BLS hop on a CPU (reference figures: 0.7 to 1.0 ms)
    )
    return capacity(load, costs, step_level(manifest.limits["max_batch"]), seeds=2, limit=limit)
