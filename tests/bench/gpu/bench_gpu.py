"""What one GPU does at the papers' geometry: step times, their share of its measured ceilings, sessions on time.

    python tests/bench/gpu/bench_gpu.py                 every preset, batch 1 to 8 (meant for 8 minutes on an H200)
    python tests/bench/gpu/bench_gpu.py --presets v0.1-8b --tune
    python tests/bench/gpu/bench_gpu.py --plans build/engines/rtx    asks TensorRT-RTX about these plans as well
    python tests/bench/gpu/bench_gpu.py --smoke --out DIR            tiny, on the CPU: proves that the script runs

Weights are random and so is the history (no weights of this size exist); shapes, and so times, are the presets' own.
For each preset the two ceilings (device copy, bf16 matrix product); then, over a history of 8 s, ms of every step with
the torch-cuda engines and with the same model in plain PyTorch, in the same run; the model-side latency of a unit; the
sessions that stay on time, from the real scheduler in simulation over the measured times, over those of plain PyTorch,
and over the floors that the ceilings set. At last whether TensorRT-RTX plans are valid here, and the goals. A preset
has a process and a folder of its own in --out; CSV files and summary.json are written after every preset. One that
fails is noted and the next one begins; after --minutes plain PyTorch is left out. Exit code 1 if a preset failed.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

# The repository and tests/bench: nothing need be installed.
sys.path.extend(str(Path(__file__).resolve().parents[up]) for up in (3, 1))

import torch
from gpu_goals import Goal, goals
from gpu_plan import Plan, say
from gpu_rtx import CAPABILITIES, verdicts
from summary import merge

from triton_models.gpu.tensorrt.probe import probe

PRESETS = ("v0.1-8b", "v0.1-1.7b", "v0.1-0.6b", "v0.2-8b")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", metavar="NAME", help=f"default: {' '.join(PRESETS)}")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument(
        "--window", type=float, default=8.0, metavar="SECONDS", help="history that is kept (default: 8)"
    )
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=8.0, help="then plain PyTorch is left out (default: 8)")
    parser.add_argument(
        "--precision", choices=("bfloat16", "fp8"), default="bfloat16", help="of ours (default: bfloat16)"
    )
    parser.add_argument("--no-baseline", action="store_true", help="leave plain PyTorch out from the start")
    parser.add_argument("--no-rtx", action="store_true", help="do not ask about TensorRT-RTX plans")
    parser.add_argument("--tune", action="store_true", help="also sweep the attention kernel's block shapes")
    parser.add_argument("--plans", type=Path, help="an engine directory of tensorrt-rtx whose plans are probed here")
    parser.add_argument("--out", type=Path, default=Path("tests/bench/results"))
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the preset of a process of this run
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU, in Triton's interpreter")
    return parser.parse_args()


def one(args: argparse.Namespace) -> int:
    """A process of the run: the preset `args.one`."""
    from gpu_preset import PresetBench  # imports torch, which the process above does without

    if args.smoke:
        plan, device = Plan.smoke(), torch.device("cpu")
    else:
        plan = Plan(tuple(args.batches), args.window, args.repeats, 2 << 30, 8192, 20.0, 2, 64)
        device = torch.device("cuda:0")
    bench = PresetBench(args.one, args.precision, plan, device, 60 * args.minutes, args.smoke, args.out)
    return 0 if bench.run(not args.no_baseline, args.tune or args.smoke) else 1


def main() -> int:
    args = parse()
    if args.one:
        return one(args)
    if not args.smoke and not torch.cuda.is_available():
        raise SystemExit("bench_gpu: expected an NVIDIA GPU, found none; --smoke only proves that the script runs")
    presets = args.presets or (("tiny",) if args.smoke else PRESETS)
    deadline = time.monotonic() + 60 * args.minutes
    found: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(presets, start=1):
        say(f"{name} ({number} of {len(presets)}), {args.window:g} s of history")
        minutes = max(0.0, deadline - time.monotonic()) / 60
        command = [sys.executable, __file__, *sys.argv[1:], "--one", name, "--minutes", f"{minutes:.2f}"]
        file = args.out / name / "preset.json"
        file.unlink(missing_ok=True)
        code = subprocess.run(command, check=False).returncode
        found[name] = (
            json.loads(file.read_text()) if file.exists() else {"facts": {}, "result": {}, "steps": [], "tiling": []}
        )
        if code and "error" not in found[name]["result"]:
            found[name]["result"]["error"] = f"its process ended with code {code}"
        save(args.out, found, args.smoke)
    facts: dict[str, Any] = {}
    if not args.no_rtx:
        facts["tensorrt_rtx"] = verdicts(CAPABILITIES[1:2] if args.smoke else CAPABILITIES)
        for capability, text in facts["tensorrt_rtx"].items():
            say(f"TensorRT-RTX, plan for {capability}: {text}")
    if args.plans:
        facts["plans"] = {file.stem: probe(file, "tensorrt-rtx").text for file in sorted(args.plans.glob("*.plan"))}
        for text in facts["plans"].values():
            say(text)
    for goal in save(args.out, found, args.smoke, facts):
        verdict = {None: "not measured", True: "met", False: "MISSED"}[goal.met]
        say(f"{verdict:12} {goal.name}: {goal.got} ({goal.goal})")
    return 1 if any("error" in values["result"] for values in found.values()) else 0


def save(out: Path, found: dict[str, dict[str, Any]], smoke: bool, facts: dict[str, Any] | None = None) -> list[Goal]:
    """What all presets have shown so far: gpu_steps.csv, gpu_units.csv, gpu_tiling.csv, gpu_goals.csv, summary.json."""
    results = {name: values["result"] for name, values in found.items()}
    steps = [row for values in found.values() for row in values["steps"]]
    reached = goals(results, steps)
    write_csv(out / "gpu_steps.csv", steps)
    write_csv(out / "gpu_units.csv", [{"preset": name, **values} for name, values in results.items()])
    write_csv(out / "gpu_tiling.csv", [row for values in found.values() for row in values["tiling"]])
    write_csv(out / "gpu_goals.csv", [asdict(goal) for goal in reached])
    first = next((values["facts"] for values in found.values() if values["facts"]), {})
    values = {**first, **(facts or {}), "presets": results, "goals": [asdict(goal) for goal in reached]}
    merge(out, {"smoke" if smoke else "gpu": values})
    return reached


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Columns are those of all rows, in order of appearance; nothing is written without rows."""
    if not rows:
        return
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()})


if __name__ == "__main__":
    raise SystemExit(main())
