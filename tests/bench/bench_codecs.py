"""What perceive and render of each preset cost: operations, bytes, and milliseconds on one thread of this CPU.

    python tests/bench/bench_codecs.py                      all presets -> tests/bench/results/codecs.csv
    python tests/bench/bench_codecs.py --presets v0.2-8b-wan --calls render    (rows of other calls stay)

Presets perceive through small encoders; `encode` is what perceiving through the codec itself would cost (`perceive:
codec`). Plain PyTorch in float32 with random weights; time is processor time, which no neighbour stretches. The
largest call takes two minutes and 10 GB.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository: nothing need be installed

import torch
from summary import machine

from engine_builder.config import ModelConfig
from engine_builder.model.codec_work import codec_works
from engine_builder.model.steps import PerceiveStep, RenderStep
from engine_builder.presets import PRESETS, preset
from triton_models.gpu.torch_cuda.codecs import perceive_module, render_module
from triton_models.runtime.engines.inputs import step_inputs

OUT = Path(__file__).parent / "results" / "codecs.csv"
CALLS = ("perceive", "encode", "render")
LARGE = 50e9  # operations of which one measured call is enough


@dataclass(frozen=True)
class Row:
    preset: str
    call: str
    codecs: str
    gflop: float
    weights_mb: float
    state_mb: float
    cpu_ms: float
    cpu_gflops: float  # a second
    calls: int
    machine: str
    date: str


def configs(name: str) -> Iterator[tuple[str, str, ModelConfig]]:
    """Call, step and config."""
    config = preset(name)
    yield "perceive", "perceive", config
    if config.audio.codec != "mdct":
        audio = replace(config.audio, perceive="codec", perceive_tokens=config.audio.tokens)
        yield "encode", "perceive", replace(config, audio=audio, video=replace(config.video, perceive="codec"))
    yield "render", "render", config


@torch.no_grad()
def milliseconds(config: ModelConfig, step: str, flops: int) -> tuple[float, int]:
    """Processor time of a call with one row, and over how many calls it is the median."""
    module: PerceiveStep | RenderStep = (perceive_module if step == "perceive" else render_module)(
        config, torch.device("cpu")
    )
    inputs = step_inputs(config, {step: module.state_size}, step, 1, 0)
    given = [torch.from_numpy(value) for value in inputs.values()]
    times = []
    for _ in range(1 if flops > LARGE else 4):
        begin = time.process_time()
        module(*given)
        times.append(1e3 * (time.process_time() - begin))
    counted = times[1:] or times  # the first of several also takes memory
    return statistics.median(counted), len(counted)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), metavar="NAME")
    parser.add_argument("--calls", nargs="+", default=CALLS, choices=CALLS)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    rows: list[Row] = []
    known: dict[tuple[object, ...], tuple[float, int]] = {}  # presets share what does not depend on the backbone
    for name in args.presets:
        for call, step, config in configs(name):
            if call not in args.calls:
                continue
            work = codec_works(config)[step]
            width = config.backbone.hidden_size if step == "perceive" else 0
            key = (step, width, *astuple(config.audio), *astuple(config.video))
            if key not in known:
                known[key] = milliseconds(config, step, work.flops)
            ms, calls = known[key]
            sizes = work.flops / 1e9, work.weight_bytes / 1e6, work.state_bytes / 1e6
            codecs = f"{config.audio.codec}, {config.video.codec}"
            rows.append(
                Row(name, call, codecs, *sizes, ms, work.flops / ms / 1e6, calls, machine(), time.strftime("%Y-%m-%d"))
            )
            print(f"{name:12} {call:9} {sizes[0]:9.2f} GFLOP {ms:10.1f} ms of processor time", flush=True)
            write(args.out, rows)
    return 0


def write(path: Path, rows: list[Row]) -> None:
    """Puts rows into the file, in the order of presets; those of other calls stay."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    if path.exists():
        with path.open(newline="") as file:
            found = {(row["preset"], row["call"]): row for row in csv.DictReader(file)}
    for row in rows:
        values = {k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in asdict(row).items()}
        found[row.preset, row.call] = values
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(found[key] for key in sorted(found, key=lambda key: (list(PRESETS).index(key[0]), key[1])))


if __name__ == "__main__":
    raise SystemExit(main())
