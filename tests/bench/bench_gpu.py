"""What one GPU does at the papers' geometry: step times, their share of its measured ceilings, sessions on time.

    python tests/bench/bench_gpu.py                     every preset, batch 1 to 8 (meant for 8 minutes on an H200)
    python tests/bench/bench_gpu.py --presets v0.1-8b --tune
    python tests/bench/bench_gpu.py --plans build/engines/rtx    asks TensorRT-RTX about these plans as well
    python tests/bench/bench_gpu.py --smoke --out DIR            tiny, on the CPU: proves that the script runs

Weights are random and so is the history (no weights of this size exist); shapes, and so times, are the presets' own.
In this order: the two ceilings (device copy, bf16 matrix product); then for each preset, over a history of 8 s, ms of
every step with the torch-cuda engines and with the same model in plain PyTorch, in the same run; the model-side latency
of a unit; the sessions that stay on time, from the real scheduler in simulation over the measured times, over those of
plain PyTorch, and over the floors that the ceilings set; at last whether TensorRT-RTX plans are valid here, and the
goals. CSV files and summary.json in --out are written after every preset. A preset that fails is noted and the next one
begins; after --minutes plain PyTorch is left out. Exit code 1 if a preset failed.
"""

from __future__ import annotations

import argparse
import csv
import gc
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_engines import SLOTS, Call, Ours, Plain, Setting
from gpu_goals import goals
from gpu_plan import Clock, Plan, config_of, say
from gpu_rtx import CAPABILITIES, verdicts
from gpu_tiling import tune
from gpu_work import Ceilings, history_tokens, step_work
from summary import machine, merge

from triton_models.gpu.tensorrt.probe import probe
from triton_models.planner.policies import step_level
from triton_models.planner.simulate import capacity
from triton_models.planner.workload import Workload
from triton_models.runtime.budget.costs import STEPS, Cost, CostTable

PRESETS = ("v0.1-0.6b", "v0.1-1.7b", "v0.1-8b", "v0.2-8b")
GPU_OUT_OF_MEMORY = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)


@dataclass
class StepRow:
    """One line of gpu_steps.csv. `ms`: host to host; `device_ms`: the graph alone; shares are of the ceilings."""

    preset: str
    step: str
    batch: int
    history: int
    ms: float
    device_ms: float
    tflops: float
    gbs: float
    share_matmul: float
    share_copy: float
    floor_ms: float
    plain_ms: float | None


def measure_ceilings(plan: Plan, device: torch.device, clock: Clock) -> Ceilings:
    """Bandwidth of a large copy and rate of a large bf16 product, on random data: zeros run faster than numbers do."""
    source = torch.empty(plan.copy_bytes // 4, device=device).normal_()
    target = torch.empty_like(source)
    copy_ms = clock.device_ms(lambda: target.copy_(source))
    n = plan.matmul_size
    a, b = (torch.empty(n, n, device=device, dtype=torch.bfloat16).normal_() for _ in range(2))
    product_ms = clock.device_ms(lambda: a @ b)
    return Ceilings(2 * plan.copy_bytes / copy_ms / 1e6, 2 * n**3 / product_ms / 1e9)


class Bench:
    """One run: ceilings once, then presets one by one. `rows` and `results` hold what is known at any time."""

    def __init__(self, plan: Plan, device: torch.device, minutes: float, smoke: bool, out: Path) -> None:
        self.plan, self.device, self.smoke, self.out = plan, device, smoke, out
        self.facts: dict[str, Any] = {
            "device": device_name(device),
            "date": time.strftime("%Y-%m-%d"),
            "torch": torch.__version__,
            "weights": "random",
        }
        self.clock = Clock(device, plan.repeats)
        self.began, self.deadline = time.monotonic(), time.monotonic() + 60 * minutes
        self.ceilings = measure_ceilings(plan, device, self.clock)
        self.rows: list[StepRow] = []
        self.results: dict[str, dict[str, Any]] = {}

    def preset(self, name: str, baseline: bool) -> None:
        """Measures one preset; whatever goes wrong is written down as its `error`."""
        result = self.results[name] = {}
        try:
            self._preset(name, baseline, result)
        except Exception as error:
            traceback.print_exc()
            result["error"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            say(f"  {name} failed: {result['error']}")
        self.save()
        gc.collect()  # graphs and their owners point at each other
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _preset(self, name: str, baseline: bool, result: dict[str, Any]) -> None:
        plan, config = self.plan, config_of(name, self.smoke)
        dtype = torch.float32 if self.smoke else torch.bfloat16
        history, steps = history_tokens(config, plan.window, SLOTS), config.solver.steps
        result |= {"history": history, "solver_steps": steps, "slots": SLOTS}
        setting = Setting(config, self.device, dtype, max(plan.batches), history)
        ours = Ours(setting)
        rows = self._steps(name, setting, ours)
        calls = {step: ours.call(step, 1) for step in STEPS}
        result["unit_ms"] = unit_latency(calls, SLOTS, steps, self.clock)
        result["unit_ms_all_slots"] = unit_latency(calls, config.language.slots, steps, self.clock)
        floors = {row.step: row.floor_ms for row in rows if row.batch == 1}
        result["unit_floor_ms"] = sum(floors.values()) + (SLOTS - 1) * floors["slot"] + (steps - 1) * floors["perform"]
        result["sessions"] = self._sessions(costs_of(rows, lambda row: row.ms), history, steps)
        result["sessions_floor"] = self._sessions(costs_of(rows, lambda row: row.floor_ms), history, steps)
        say(
            f"  unit {result['unit_ms']:.1f} ms (floor {result['unit_floor_ms']:.1f} ms), "
            f"sessions {result['sessions']} (the ceilings allow {result['sessions_floor']})"
        )
        self.save()  # plain PyTorch takes the longest
        if baseline:
            self._baseline(setting, rows, result)

    def _steps(self, name: str, setting: Setting, ours: Ours) -> list[StepRow]:
        rows: list[StepRow] = []
        for step in STEPS:
            for batch in self.plan.batches:
                work = step_work(setting.config, step, batch, setting.history)
                ms = self.clock.wall_ms(ours.call(step, batch))
                device_ms = self.clock.device_ms(ours.graph(step, batch).relaunch, ours.lane.stream)
                tflops, gbs = work.flops / device_ms / 1e9, work.bytes / device_ms / 1e6
                shares = tflops / self.ceilings.matmul_tflops, gbs / self.ceilings.copy_gbs
                floor = work.floor_ms(self.ceilings)
                row = StepRow(name, step, batch, setting.history, ms, device_ms, tflops, gbs, *shares, floor, None)
                say(
                    f"  {self._elapsed()} {step:9} batch {batch}: {ms:8.3f} ms ({device_ms:.3f} on the device, "
                    f"floor {floor:.3f}), {shares[0]:.0%} of the product, {shares[1]:.0%} of the copy ceiling"
                )
                rows.append(row)
                self.rows.append(row)
        return rows

    def _baseline(self, setting: Setting, rows: Sequence[StepRow], result: dict[str, Any]) -> None:
        """The same work in plain PyTorch, as far as memory and time allow."""
        plain = Plain(setting)
        for row in rows:
            if time.monotonic() > self.deadline:
                result["plain"] = "left out: out of time"
                say(f"  {self._elapsed()} plain PyTorch is left out from here on: out of time")
                return
            row.plain_ms = attempt(
                lambda row=row: self.clock.wall_ms(plain.call(row.step, row.batch), self.plan.plain_repeats)
            )
            shown = "no memory" if row.plain_ms is None else f"{row.plain_ms:.3f} ms"
            say(f"  {self._elapsed()} plain {row.step:9} batch {row.batch}: {shown}")
        steps = int(result["solver_steps"])
        calls = {step: plain.call(step, 1) for step in STEPS}
        result["plain_unit_ms"] = attempt(lambda: unit_latency(calls, SLOTS, steps, self.clock))
        costs = costs_of(rows, lambda row: row.plain_ms)
        complete = {cost.step for cost in costs} == set(STEPS)
        result["plain_sessions"] = self._sessions(costs, setting.history, steps) if complete else None
        say(f"  plain: unit {result['plain_unit_ms']} ms, sessions {result['plain_sessions']}")

    def _sessions(self, costs: Sequence[Cost], history: int, solver_steps: int) -> int:
        """Sessions that stay on time with one device, by the server's own scheduler; calls cost what was measured."""
        load = Workload(
            seconds=self.plan.simulated,
            solver_steps=solver_steps,
            devices=1,
            history=history,
            overhead=0.0,  # the times are host to host
            warmup_seconds=self.plan.simulated / 4,
        )
        policy = step_level(max_batch=max(self.plan.batches))
        return capacity(load, CostTable(costs), policy, seeds=self.plan.seeds, limit=self.plan.session_limit)

    def _elapsed(self) -> str:
        seconds = round(time.monotonic() - self.began)
        return f"[{seconds // 60}:{seconds % 60:02}]"

    def save(self) -> None:
        """Everything so far: gpu_steps.csv, gpu_units.csv, gpu_goals.csv, summary.json."""
        out = self.out
        steps = [asdict(row) for row in self.rows]
        write_csv(out / "gpu_steps.csv", steps)
        write_csv(out / "gpu_units.csv", [{"preset": name, **values} for name, values in self.results.items()])
        found = [asdict(goal) for goal in goals(self.results, steps)]
        write_csv(out / "gpu_goals.csv", found)
        values = {**self.facts, "ceilings": asdict(self.ceilings), "presets": self.results, "goals": found}
        merge(out, {"smoke" if self.smoke else "gpu": values})


def attempt(call: Callable[[], float]) -> float | None:
    """None if the device's memory does not hold it."""
    try:
        return call()
    except GPU_OUT_OF_MEMORY:
        torch.cuda.empty_cache()
        return None


def unit_latency(calls: dict[str, Call], slots: int, solver_steps: int, clock: Clock) -> float:
    """Milliseconds from a complete user unit to its PCM and frames, one session: the stages one after the other."""

    def unit() -> None:
        calls["perceive"]()
        calls["think"]()
        for _ in range(slots):
            calls["slot"]()
        for _ in range(solver_steps):
            calls["perform"]()
        calls["render"]()

    return clock.wall_ms(unit)


def costs_of(rows: Sequence[StepRow], value: Callable[[StepRow], float | None]) -> list[Cost]:
    """A cost table of one column; batches that did not fit are left out."""
    found = ((row, value(row)) for row in rows)
    return [Cost(row.step, row.batch, row.history, ms) for row, ms in found if ms is not None]


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else machine()


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Columns are those of all rows, in order of appearance; nothing is written without rows."""
    if not rows:
        return
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()})


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", metavar="NAME", help=f"default: {' '.join(PRESETS)}")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument(
        "--window", type=float, default=8.0, metavar="SECONDS", help="history that is kept (default: 8)"
    )
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=8.0, help="then plain PyTorch is left out (default: 8)")
    parser.add_argument("--no-baseline", action="store_true", help="leave plain PyTorch out from the start")
    parser.add_argument("--no-rtx", action="store_true", help="do not ask about TensorRT-RTX plans")
    parser.add_argument("--tune", action="store_true", help="also sweep the attention kernel's block shapes")
    parser.add_argument("--plans", type=Path, help="an engine directory of tensorrt-rtx whose plans are probed here")
    parser.add_argument("--out", type=Path, default=Path("tests/bench/results"))
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU, in Triton's interpreter")
    return parser.parse_args()


def main() -> int:
    args = parse()
    if args.smoke:
        plan, device = Plan.smoke(tuple(args.presets or ("tiny",))), torch.device("cpu")
    elif torch.cuda.is_available():
        sizes = (tuple(args.presets or PRESETS), tuple(args.batches), args.window, args.repeats)
        plan, device = Plan(*sizes, 2 << 30, 8192, 20.0, 2, 64), torch.device("cuda:0")
    else:
        raise SystemExit("bench_gpu: expected an NVIDIA GPU, found none; --smoke only proves that the script runs")
    args.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(plan, device, args.minutes, args.smoke, args.out)
    found = bench.ceilings
    say(f"{device_name(device)}: copy {found.copy_gbs:.0f} GB/s, bf16 product {found.matmul_tflops:.0f} TFLOP/s")
    for number, name in enumerate(plan.presets, start=1):
        say(f"{name} ({number} of {len(plan.presets)}), {plan.window:g} s of history")
        bench.preset(name, not args.no_baseline)
    if not args.no_rtx:
        bench.facts["tensorrt_rtx"] = verdicts(CAPABILITIES[1:2] if args.smoke else CAPABILITIES)
        for capability, text in bench.facts["tensorrt_rtx"].items():
            say(f"TensorRT-RTX, plan for {capability}: {text}")
    if args.plans:
        bench.facts["plans"] = {
            file.stem: probe(file, "tensorrt-rtx").text for file in sorted(args.plans.glob("*.plan"))
        }
        for text in bench.facts["plans"].values():
            say(text)
    bench.save()
    if args.tune or args.smoke:
        measured = [name for name in plan.presets if "error" not in bench.results[name]]
        shapes = [row for name in measured for row in tune(name, plan, device, found, bench.clock, args.smoke)]
        write_csv(args.out / "gpu_tiling.csv", shapes)
    for goal in goals(bench.results, [asdict(row) for row in bench.rows]):
        verdict = {None: "not measured", True: "met", False: "MISSED"}[goal.met]
        say(f"{verdict:12} {goal.name}: {goal.got} ({goal.goal})")
    return 1 if any("error" in result for result in bench.results.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
