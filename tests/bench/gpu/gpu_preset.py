"""One preset in a process of its own: step times, a unit, sessions on time -> `<out>/<preset>/preset.json`.

An illegal access or a full device ends one process and one preset. The file is written anew after every part.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from gpu_engines import SLOTS, Call, Ours, Plain, Setting
from gpu_plan import Clock, Plan, config_of, say
from gpu_tiling import tune
from gpu_work import Ceilings, history_tokens, step_work
from summary import machine

from engine_builder.targets.precision import dtype_of
from triton_models.planner.policies import step_level
from triton_models.planner.simulate import capacity
from triton_models.planner.workload import Workload
from triton_models.runtime.budget.costs import STEPS, Cost, CostTable

T = TypeVar("T")
GPU_OUT_OF_MEMORY = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)


@dataclass
class StepRow:
    """One line of gpu_steps.csv. `ms`: host to host; `device_ms`: the graph alone; shares are of the ceilings."""

    preset: str
    precision: str
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
    """Bandwidth of a large copy, rates of large products, on random data: zeros run faster than numbers do."""
    source = torch.empty(plan.copy_bytes // 4, device=device).normal_()
    target = torch.empty_like(source)
    copy_ms = clock.device_ms(lambda: target.copy_(source))
    n = plan.matmul_size
    rates = []
    for dtype in (torch.bfloat16, torch.float32):
        a, b = (torch.empty(n, n, device=device, dtype=dtype).normal_() for _ in range(2))
        rates.append(2 * n**3 / clock.device_ms(lambda a=a, b=b: a @ b) / 1e9)
    return Ceilings(2 * plan.copy_bytes / copy_ms / 1e6, *rates)


class PresetBench:
    """The measurements of one preset. `result` and `rows` hold what is known at any time."""

    def __init__(
        self, name: str, precision: str, plan: Plan, device: torch.device, seconds: float, smoke: bool, out: Path
    ) -> None:
        """precision: bfloat16 or fp8; a smoke run is in float32, and its fp8 in bfloat16 as well"""
        self.name, self.plan, self.device, self.smoke = name, plan, device, smoke
        self.precision = "float32" if smoke and precision != "fp8" else precision
        self.path = out / name / "preset.json"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.clock = Clock(device, plan.repeats)
        self.began, self.deadline = time.monotonic(), time.monotonic() + seconds
        self.ceilings = measure_ceilings(plan, device, self.clock)
        self.rows: list[StepRow] = []
        self.shapes: list[dict[str, Any]] = []
        self.result: dict[str, Any] = {}

    def run(self, baseline: bool, tiling: bool) -> bool:
        """Measures; whatever goes wrong is written down as the preset's `error`. True if nothing did."""
        found = self.ceilings
        say(
            f"{device_name(self.device)}: copy {found.copy_gbs:.0f} GB/s, bf16 {found.matmul_tflops:.0f}, "
            f"float32 {found.float32_tflops:.0f} TFLOP/s"
        )
        try:
            self._run(baseline)
            if tiling:
                self.shapes = list(tune(self.name, self.plan, self.device, found, self.clock, self.smoke))
        except Exception as error:
            traceback.print_exc()
            self.result["error"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            say(f"  {self.name} failed: {self.result['error']}")
        self.save()
        return "error" not in self.result

    def _run(self, baseline: bool) -> None:
        plan, config, result = self.plan, config_of(self.name, self.smoke), self.result
        dtype = dtype_of(self.precision)
        history, steps = history_tokens(config, plan.window, SLOTS), config.solver.steps
        result |= {"precision": self.precision, "history": history, "solver_steps": steps, "slots": SLOTS}
        setting = Setting(config, self.device, dtype, max(plan.batches), history)
        ours = Ours(setting, self.precision)
        rows = self._steps(setting, ours)
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
            self._baseline(setting)

    def _steps(self, setting: Setting, ours: Ours) -> list[StepRow]:
        for step in STEPS:
            for batch in self.plan.batches:
                work = step_work(setting.config, step, batch, setting.history, self.precision == "fp8")
                ms = self.clock.wall_ms(ours.call(step, batch))
                device_ms = self.clock.device_ms(ours.graph(step, batch).relaunch, ours.lane.stream)
                tflops, gbs = work.flops / device_ms / 1e9, work.bytes / device_ms / 1e6
                shares = tflops / self.ceilings.tflops(work), gbs / self.ceilings.copy_gbs
                floor = work.floor_ms(self.ceilings)
                facts = (self.name, self.precision, step, batch, setting.history)
                row = StepRow(*facts, ms, device_ms, tflops, gbs, *shares, floor, None)
                say(
                    f"  {self._elapsed()} {step:9} batch {batch}: {ms:8.3f} ms ({device_ms:.3f} on the device, "
                    f"floor {floor:.3f}), {shares[0]:.0%} of the product, {shares[1]:.0%} of the copy ceiling"
                )
                self.rows.append(row)
        return self.rows

    def _baseline(self, setting: Setting) -> None:
        """The same work in plain PyTorch, as far as memory and time allow."""
        rows, result = self.rows, self.result
        plain = attempt(lambda: Plain(setting))
        if plain is None:
            result["plain"] = "left out: its weights do not fit beside ours"
            return
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
        """Everything so far."""
        facts = {
            "device": device_name(self.device),
            "date": time.strftime("%Y-%m-%d"),
            "torch": torch.__version__,
            "weights": "random",
            "ceilings": asdict(self.ceilings),
        }
        steps = [asdict(row) for row in self.rows]
        values = {"facts": facts, "result": self.result, "steps": steps, "tiling": self.shapes}
        self.path.write_text(json.dumps(values, indent=2) + "\n")


def attempt(call: Callable[[], T]) -> T | None:
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
