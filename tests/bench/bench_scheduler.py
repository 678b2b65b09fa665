"""How many sessions the step-level scheduler keeps on time, against request-level batching and none; and its own cost.

The first part simulates (`triton_models.planner.simulate`) the server's scheduler over assumed GPU-like costs:
a call takes a fixed time plus a time per row. Reference: 6 ms + 1.5 ms a row, 4 solver steps, two devices, a response
within 100 ms of the complete unit. A sweep over costs, deadlines and devices shows where the gain holds and where not.
Request-level batching gets the best of three settings of Triton's batcher in every cell. The second part measures the
scheduler itself with 256 sessions in it.

    python tests/bench/bench_scheduler.py
"""

from __future__ import annotations

import argparse
import csv
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.progress import track
from summary import machine, merge

from engine_builder.presets import preset
from triton_models.planner.policies import Policy, one_at_a_time, request_level, step_level
from triton_models.planner.simulate import AdmissionGate, Simulation, capacity, simulate
from triton_models.planner.workload import Workload, gpu_like
from triton_models.runtime.budget.admission import Admission, Budget
from triton_models.runtime.budget.costs import CostTable
from triton_models.runtime.kv.retention import Window
from triton_models.runtime.performer.scheduler import NS_PER_MS, StepScheduler

OURS, ONE = step_level(), one_at_a_time()
# Triton's dynamic batcher as it comes, with a queue delay, with a small batch that ends sooner.
REQUEST = [request_level(), request_level(delay_ms=5.0), request_level(max_batch=8)]
REFERENCE = (6.0, 1.5)
DEADLINE = 100.0
# (fixed, per row) ms of a call: bound by launches and weights .. bound by arithmetic, where a batch saves nothing.
COSTS = [(8.0, 0.5), REFERENCE, (3.0, 1.5), (3.0, 3.0), (1.5, 3.0), (0.5, 7.0)]
DEADLINES = [80.0, DEADLINE, 130.0, 160.0]


@dataclass(frozen=True)
class Cell:
    """One setting of the sweep and the sessions each policy sustains with 99% of the units on time."""

    devices: int
    fixed: float
    per_row: float
    deadline: float
    ours: int
    request: int
    one: int

    @property
    def gain(self) -> float:
        return self.ours / max(self.request, 1)


def cell(devices: int, costs: tuple[float, float], deadline: float, seeds: int, seconds: float) -> Cell:
    load = Workload(devices=devices, deadline=deadline, seconds=seconds)
    table = gpu_like(*costs)
    request = max(capacity(load, table, policy, seeds=seeds) for policy in REQUEST)
    ours, one = (capacity(load, table, policy, seeds=seeds) for policy in (OURS, ONE))
    return Cell(devices, *costs, deadline, ours, request, one)


def overload(sustained: int, table: CostTable, seeds: int) -> dict[str, float]:
    """Twice the capacity is offered in sessions that come and go; admission keeps what it admits on time."""
    units = late = admitted = refused = 0
    for seed in range(seeds):
        load = Workload(sessions=2 * sustained, seconds=30.0, session_seconds=10.0, deadline=DEADLINE, seed=seed)
        budget = Budget(sustained, load.solver_steps, pages=10**6, page_tokens=16, deadline=DEADLINE)
        admission = Admission(preset("tiny"), table, budget)
        gate = AdmissionGate(admission, Window(4, 50), load.solver_steps)
        report = Simulation(load, table, OURS, gate).run()
        units += report.units
        late += round(report.units * (1 - report.on_time))
        admitted += report.admitted
        refused += sum(report.refused.values())
    return {
        "sim_overload_on_time": round(1 - late / units, 4),
        "sim_overload_sessions_admitted": admitted,
        "sim_overload_sessions_refused": refused,
    }


def tick_ms(sessions: int, ticks: int = 2000) -> list[float]:
    """Milliseconds of `next_tick` + `completed` + the joins that refill it, with `sessions` jobs in the scheduler."""
    scheduler = StepScheduler(CostTable.linear({"perform": (6.0, 0.2)}), max_batch=64)
    rng = random.Random(0)
    now, number, times = 0, 0, []
    for _ in range(ticks):
        begin = time.perf_counter_ns()
        while len(scheduler) < sessions:
            number += 1
            scheduler.join(number, now + rng.randint(60, 400) * NS_PER_MS, 4, now)
        rows = scheduler.next_tick(now)
        now += round((6.0 + 0.2 * len(rows)) * NS_PER_MS)
        scheduler.completed(rows, now)
        times.append((time.perf_counter_ns() - begin) / 1e6)
    return times[ticks // 10 :]


def curve(policies: Sequence[Policy], sessions: Sequence[int], seeds: int, seconds: float) -> dict[str, list[float]]:
    """On-time shares of the reference over the number of sessions."""
    load, table = Workload(deadline=DEADLINE, seconds=seconds), gpu_like(*REFERENCE)
    return {
        policy.name: [simulate(replace(load, sessions=n), table, policy, seeds).on_time for n in sessions]
        for policy in policies
    }


def plot(curves: dict[str, list[float]], sessions: Sequence[int], cells: Sequence[Cell], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for name, shares in curves.items():
        left.plot(sessions, [100 * share for share in shares], marker="o", label=name)
    left.axhline(99, color="grey", linestyle=":")
    left.set(xlabel="sessions", ylabel="units on time, %", title=f"6 + 1.5 ms a row, response in {DEADLINE:g} ms")
    left.legend(frameon=False)
    for costs in COSTS:
        mine = [c for c in cells if (c.fixed, c.per_row) == costs and c.devices == 2 and c.request]
        label = f"{costs[0]:g} + {costs[1]:g} ms a row"
        right.plot([c.deadline for c in mine], [c.gain for c in mine], marker="o", label=label)
    right.axhline(1, color="grey", linestyle=":")
    right.set(xlabel="deadline of the response, ms", ylabel="sessions, step-level / request-level", ylim=(0, 4))
    right.set_title("the gain is the deadline's: two devices")
    right.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8, help="runs for each figure of the reference (default: 8)")
    parser.add_argument("--sweep-seeds", type=int, default=3, help="runs for each figure of the sweep (default: 3)")
    parser.add_argument("--seconds", type=float, default=10.0, help="simulated seconds of a run (default: 10)")
    parser.add_argument("--out", type=Path, default=Path("build/runs/bench"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    reference = cell(2, REFERENCE, DEADLINE, args.seeds, args.seconds)
    settings = [(devices, costs, deadline) for devices in (2, 1) for costs in COSTS for deadline in DEADLINES]
    cells = [cell(*setting, args.sweep_seeds, args.seconds) for setting in track(settings, "sweep", transient=True)]
    times = tick_ms(256)
    sessions = list(range(1, reference.ours + 5))
    curves = curve([OURS, REQUEST[0], ONE], sessions, args.sweep_seeds, args.seconds)
    crowd = overload(reference.ours, gpu_like(*REFERENCE), args.sweep_seeds)

    with (args.out / "scheduler.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["devices", "fixed_ms", "row_ms", "deadline_ms", "step_level", "request_level", "one", "gain"])
        for c in [reference, *cells]:
            row = (c.devices, c.fixed, c.per_row, c.deadline, c.ours, c.request, c.one, round(c.gain, 2))
            writer.writerow(row)
    plot(curves, sessions, cells, args.out / "scheduler.png")
    possible = [c for c in cells if c.request]
    merge(
        args.out,
        {
            "sim_sessions_vs_request_batching": round(reference.gain, 2),
            "sim_sessions_vs_one_at_a_time": round(reference.ours / max(reference.one, 1), 2),
            "sim_sessions_vs_request_batching_sweep": [
                round(figure, 2)
                for figure in (
                    min(c.gain for c in possible),
                    statistics.median(c.gain for c in possible),
                    max(c.gain for c in possible),
                )
            ],
            "sim_sessions_fewer_than_one_at_a_time": sum(c.ours < c.one for c in cells),
            "scheduler_ms_per_tick_256": round(statistics.mean(times), 4),
            **crowd,
        },
    )
    report(reference, cells, times, crowd)
    print(f"{args.out / 'scheduler.csv'}, {args.out / 'scheduler.png'}")


def report(reference: Cell, cells: Sequence[Cell], times: Sequence[float], crowd: dict[str, float]) -> None:
    print("sessions with 99% of units on time: step-level / request-level / one at a time (4 solver steps)")
    print(f"{'devices':<9}{'call, ms':<18}" + "".join(f"{f'{d:g} ms':>18}" for d in DEADLINES))
    for devices in (2, 1):
        for costs in COSTS:
            mine = [c for c in cells if c.devices == devices and (c.fixed, c.per_row) == costs]
            figures = "".join(f"{f'{c.ours}/{c.request}/{c.one} {c.gain:.2f}x':>18}" for c in mine)
            print(f"{devices:<9}{f'{costs[0]:g} + {costs[1]:g} a row':<18}{figures}")
    r = reference
    print(f"reference (2 devices, 6 + 1.5, {DEADLINE:g} ms): {r.ours}/{r.request}/{r.one} {r.gain:.2f}x")
    print(f"twice that offered: {crowd}")
    print(f"scheduler at 256 sessions: {statistics.mean(times):.3f} ms a tick, most {max(times):.3f} ms ({machine()})")


if __name__ == "__main__":
    main()
