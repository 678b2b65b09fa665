"""What one GPU does at the papers' geometry: step times, their share of its measured ceilings, sessions on time.

    python tests/bench/bench_gpu.py                     every preset, batch 1 to 8 (about 8 minutes on an H200)
    python tests/bench/bench_gpu.py --presets v0.1-8b --tune
    python tests/bench/bench_gpu.py --plans build/engines/rtx    asks TensorRT-RTX whether these plans are valid here
    python tests/bench/bench_gpu.py --smoke --out DIR            tiny, on the CPU: proves that the script runs

Weights are random and so is the history (no weights of this size exist); shapes, and so times, are the presets' own.
In this order: the two ceilings (device copy, bf16 matrix product); then for each preset, over a history of 8 s, ms of
every step with the torch-cuda engines and with the same model in plain PyTorch, in the same run; the model-side latency
of a unit; and the sessions that stay on time, from the real scheduler in simulation over the measured times, over those
of plain PyTorch, and over the floors that the ceilings set. Results: CSV files and summary.json in --out.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_engines import PAGE_TOKENS, Call, Ours, Plain, Setting
from gpu_work import Ceilings, attention_work, history_tokens, step_work
from summary import machine, merge

from engine_builder.config import ModelConfig, preset
from triton_models.gpu.engine_probe import probe
from triton_models.gpu.history_index import build_index
from triton_models.gpu.paged_attention import Chip, Tiling, choose_tiling, paged_attention
from triton_models.policies import step_level
from triton_models.runtime.costs import STEPS, Cost, CostTable
from triton_models.simulate import capacity
from triton_models.workload import Workload

PRESETS = ("v0.1-0.6b", "v0.1-1.7b", "v0.1-8b", "v0.2-8b")
SLOTS = 2  # fed a unit in the latency figure: the state and, mostly, one token of speech
GPU_OUT_OF_MEMORY = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)


@dataclass(frozen=True)
class Plan:
    """How much of it to run."""

    presets: tuple[str, ...]
    batches: tuple[int, ...]
    window: float  # seconds of history
    repeats: int
    copy_bytes: int
    matmul_size: int
    simulated: float  # seconds a simulation covers
    seeds: int
    session_limit: int

    @classmethod
    def smoke(cls) -> Plan:
        return cls(("tiny",), (1, 2), 0.5, 1, 1 << 16, 64, 4.0, 1, 3)


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


class Clock:
    """Times calls: CUDA events on a GPU, wall clock for what includes the host."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def wall_ms(self, call: Callable[[], Any]) -> float:
        """Median of single calls, each waited for."""
        call()
        times = []
        for _ in range(self.repeats):
            self.synchronize()
            begin = time.perf_counter()
            call()
            self.synchronize()
            times.append((time.perf_counter() - begin) * 1e3)
        return statistics.median(times)

    def device_ms(self, call: Callable[[], Any], stream: torch.cuda.Stream | None = None) -> float:
        """Median over pairs of events around calls that follow each other without waiting."""
        if self.device.type != "cuda":
            return self.wall_ms(call)
        stream = stream or torch.cuda.current_stream(self.device)
        with torch.cuda.stream(stream):
            call()
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(self.repeats + 1)]
            marks[0].record(stream)
            for mark in marks[1:]:
                call()
                mark.record(stream)
            stream.synchronize()
        return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(marks))


def measure_ceilings(plan: Plan, device: torch.device, clock: Clock) -> Ceilings:
    """Bandwidth of a large copy and rate of a large bf16 product, on random data: zeros run faster than numbers do."""
    source = torch.empty(plan.copy_bytes // 4, device=device).normal_()
    target = torch.empty_like(source)
    copy_ms = clock.device_ms(lambda: target.copy_(source))
    n = plan.matmul_size
    a, b = (torch.empty(n, n, device=device, dtype=torch.bfloat16).normal_() for _ in range(2))
    product_ms = clock.device_ms(lambda: a @ b)
    return Ceilings(2 * plan.copy_bytes / copy_ms / 1e6, 2 * n**3 / product_ms / 1e9)


def config_of(name: str, smoke: bool) -> ModelConfig:
    config = preset(name)
    if not smoke:
        return config
    small = {"hidden_size": 32, "layers": 1, "heads": 4, "kv_heads": 2, "head_dim": 16, "intermediate_size": 48}
    return replace(config, backbone=replace(config.backbone, **small))


def measure_steps(
    name: str, plan: Plan, setting: Setting, ours: Ours, plain: Plain | None, ceilings: Ceilings, clock: Clock
) -> Iterator[StepRow]:
    for step in STEPS:
        for batch in plan.batches:
            work = step_work(setting.config, step, batch, setting.history)
            ms = clock.wall_ms(ours.call(step, batch))
            graph = ours.graph(step, batch)
            device_ms = clock.device_ms(graph.relaunch, ours.lane.stream)
            tflops, gbs = work.flops / device_ms / 1e9, work.bytes / device_ms / 1e6
            row = StepRow(
                name,
                step,
                batch,
                setting.history,
                ms,
                device_ms,
                tflops,
                gbs,
                tflops / ceilings.matmul_tflops,
                gbs / ceilings.copy_gbs,
                work.floor_ms(ceilings),
                attempt(lambda step=step, batch=batch: clock.wall_ms(plain.call(step, batch))) if plain else None,
            )
            say(
                f"  {step:9} batch {batch}: {ms:8.3f} ms ({device_ms:.3f} on the device), "
                f"{row.share_matmul:.0%} of the product, {row.share_copy:.0%} of the copy ceiling"
                + (f", plain {row.plain_ms:.3f} ms" if row.plain_ms else "")
            )
            yield row


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


def sessions_on_time(costs: Sequence[Cost], plan: Plan, history: int, solver_steps: int) -> int:
    """How many sessions stay on time with one device, by the server's own scheduler; calls cost what was measured."""
    load = Workload(
        seconds=plan.simulated,
        solver_steps=solver_steps,
        devices=1,
        history=history,
        overhead=0.0,  # the times are host to host
        warmup_seconds=plan.simulated / 4,
    )
    policy = step_level(max_batch=max(plan.batches))
    return capacity(load, CostTable(costs), policy, seeds=plan.seeds, limit=plan.session_limit)


def costs_of(rows: Sequence[StepRow], value: Callable[[StepRow], float | None]) -> list[Cost]:
    """A cost table of one column; batches that did not fit are left out."""
    found = ((row, value(row)) for row in rows)
    return [Cost(row.step, row.batch, row.history, ms) for row, ms in found if ms is not None]


def bench_preset(
    name: str, plan: Plan, device: torch.device, ceilings: Ceilings, clock: Clock, baseline: bool, smoke: bool
) -> tuple[list[StepRow], dict[str, Any]]:
    config = config_of(name, smoke)
    dtype = torch.float32 if smoke else torch.bfloat16
    history = history_tokens(config, plan.window, SLOTS)
    setting = Setting(config, device, dtype, max(plan.batches), history)
    say(f"{name}: {history} tokens of history ({plan.window:g} s)")
    ours, plain = Ours(setting), Plain(setting) if baseline else None
    rows = list(measure_steps(name, plan, setting, ours, plain, ceilings, clock))
    steps = config.solver.steps
    result: dict[str, Any] = {"history": history, "solver_steps": steps, "slots": SLOTS}
    calls = {step: ours.call(step, 1) for step in STEPS}
    result["unit_ms"] = unit_latency(calls, SLOTS, steps, clock)
    result["unit_ms_all_slots"] = unit_latency(calls, config.language.slots, steps, clock)
    floors = {row.step: row.floor_ms for row in rows if row.batch == 1}
    result["unit_floor_ms"] = sum(floors.values()) + (SLOTS - 1) * floors["slot"] + (steps - 1) * floors["perform"]
    result["sessions"] = sessions_on_time(costs_of(rows, lambda row: row.ms), plan, history, steps)
    result["sessions_floor"] = sessions_on_time(costs_of(rows, lambda row: row.floor_ms), plan, history, steps)
    if plain is not None:
        plain_calls = {step: plain.call(step, 1) for step in STEPS}
        result["plain_unit_ms"] = attempt(lambda: unit_latency(plain_calls, SLOTS, steps, clock))
        costs = costs_of(rows, lambda row: row.plain_ms)
        complete = {cost.step for cost in costs} == set(STEPS)
        result["plain_sessions"] = sessions_on_time(costs, plan, history, steps) if complete else None
    floor = result["sessions_floor"]
    say(f"  unit {result['unit_ms']:.1f} ms, sessions {result['sessions']} (the ceilings allow {floor})")
    return rows, result


def tune(
    name: str, plan: Plan, device: torch.device, ceilings: Ceilings, clock: Clock, smoke: bool
) -> Iterator[dict[str, Any]]:
    """The attention kernel alone, in every block shape that fits, beside the shape that `choose_tiling` takes."""
    config = config_of(name, smoke)
    shapes = ((1, plan.batches[0]), (1, plan.batches[-1]), (config.latent_tokens, plan.batches[-1]))
    for tokens, batch in shapes:
        chosen, attend = attention_alone(config, tokens, batch, plan, device, smoke)
        work = attention_work(config, tokens, batch, history_tokens(config, plan.window, SLOTS))
        for tiling in tilings(chosen, smoke):
            try:
                ms = clock.device_ms(partial(attend, tiling))
            except Exception as error:  # a shape that this chip has no room for; Triton raises types of its own
                say(f"  {tiling}: {type(error).__name__}")
                continue
            yield {
                "preset": name,
                "tokens": tokens,
                "batch": batch,
                **asdict(tiling),
                "ms": ms,
                "share_matmul": work.flops / ms / 1e9 / ceilings.matmul_tflops,
                "share_copy": work.bytes / ms / 1e6 / ceilings.copy_gbs,
                "chosen": tiling == chosen,
            }


def attention_alone(
    config: ModelConfig, tokens: int, batch: int, plan: Plan, device: torch.device, smoke: bool
) -> tuple[Tiling, Callable[[Tiling], torch.Tensor]]:
    """The tiling that serving would take for one layer's attention, and a function that runs it with any other."""
    b, history = config.backbone, history_tokens(config, plan.window, SLOTS)
    dtype = torch.float32 if smoke else torch.bfloat16
    s = Setting(replace(config, backbone=replace(b, layers=1)), device, dtype, batch, history)
    index = build_index(torch.from_numpy(s.table).to(device), torch.from_numpy(s.ranges).to(device), PAGE_TOKENS)

    def normal(heads: int) -> torch.Tensor:
        return torch.empty(batch, tokens, heads, b.head_dim, device=device, dtype=dtype).normal_()

    q, k, v = normal(b.heads), normal(b.kv_heads), normal(b.kv_heads)
    width, item = index.tokens.shape[1], q.element_size()
    chosen = choose_tiling(batch, tokens, b.heads, b.kv_heads, b.head_dim, item, width, Chip.of(device))
    return chosen, lambda tiling: paged_attention(q, k, v, s.k_pool[0], s.v_pool[0], index, tiling=tiling)


def tilings(chosen: Tiling, smoke: bool) -> Iterator[Tiling]:
    """The chosen block shape first, then its neighbours."""
    yield chosen
    if smoke:
        return
    slot = chosen.rows == 16
    for rows in (chosen.rows,) if slot else (64, 128):
        for keys in (32, 64, 128):
            for stages in (2, 3, 5, 7):
                for warps in (4, 8):
                    for splits in {chosen.splits, *((chosen.splits // 2, chosen.splits * 2) if slot else (1, 2, 4))}:
                        tiling = Tiling(rows, keys, warps, stages, max(1, splits))
                        if tiling != chosen:
                            yield tiling


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else machine()


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()})


def say(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=list(PRESETS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument(
        "--window", type=float, default=8.0, metavar="SECONDS", help="history that is kept (default: 8)"
    )
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--no-baseline", action="store_true", help="leave plain PyTorch out")
    parser.add_argument("--tune", action="store_true", help="also sweep the attention kernel's block shapes")
    parser.add_argument("--plans", type=Path, help="an engine directory of tensorrt-rtx whose plans are probed here")
    parser.add_argument("--out", type=Path, default=Path("tests/bench/results"))
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU, in Triton's interpreter")
    args = parser.parse_args()

    if args.smoke:
        plan, device = Plan.smoke(), torch.device("cpu")
    elif torch.cuda.is_available():
        sizes = (tuple(args.presets), tuple(args.batches), args.window, args.repeats)
        plan, device = Plan(*sizes, 2 << 30, 8192, 30.0, 3, 64), torch.device("cuda:0")
    else:
        raise SystemExit("bench_gpu: expected an NVIDIA GPU, found none; --smoke only proves that the script runs")
    args.out.mkdir(parents=True, exist_ok=True)
    clock = Clock(device, plan.repeats)
    ceilings = measure_ceilings(plan, device, clock)
    say(f"{device_name(device)}: copy {ceilings.copy_gbs:.0f} GB/s, bf16 product {ceilings.matmul_tflops:.0f} TFLOP/s")
    results: dict[str, Any] = {
        "device": device_name(device),
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "weights": "random",
        "ceilings": asdict(ceilings),
        "presets": {},
    }
    rows: list[StepRow] = []
    for name in plan.presets:
        own, results["presets"][name] = bench_preset(
            name, plan, device, ceilings, clock, not args.no_baseline, args.smoke
        )
        rows += own
        write_csv(args.out / "gpu_steps.csv", [asdict(row) for row in rows])
        units = [{"preset": preset_name, **values} for preset_name, values in results["presets"].items()]
        write_csv(args.out / "gpu_units.csv", units)
        merge(args.out, {"smoke" if args.smoke else "gpu": results})  # after each, so that a limit of time loses little
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if args.tune or args.smoke:
        shapes = [row for name in plan.presets for row in tune(name, plan, device, ceilings, clock, args.smoke)]
        write_csv(args.out / "gpu_tiling.csv", shapes)
    if args.plans:
        verdicts = {plan_file.stem: probe(plan_file, "tensorrt-rtx").text for plan_file in args.plans.glob("*.plan")}
        results["tensorrt_rtx"] = verdicts
        merge(args.out, {"smoke" if args.smoke else "gpu": results})
        for text in verdicts.values():
            say(text)


if __name__ == "__main__":
    main()
