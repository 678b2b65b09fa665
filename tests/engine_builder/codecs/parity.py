"""Every family as presets use it, 24 units, against its oracle -> tests/bench/results/codec_parity.csv.

    make codec-parity                          # all; wan21 takes the better part of an hour of one core
    make codec-parity PARITY_FLAGS='--families wan21 --size 32x64'                  # two minutes

A row tells the largest difference between what the codec gives unit by unit and what the oracle gives when the whole
stream is given to it at once (sound in [-1, 1], pixels in [0, 1], latents of about unit variance), what a random later
half changes in the outputs before it, and the state that was allocated beside the one that `info` states.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[3]))  # the repository: nothing need be installed
sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))

import torch
from families import FAMILIES, codec, lively_mimi
from oracles import oracle_of
from streams import DIRECTIONS, stream
from summary import machine

OUT = Path(__file__).resolve().parents[2] / "bench" / "results" / "codec_parity.csv"
TOLERANCE = 1e-4
CAUSAL_UNITS = 4  # of which the last two change


@dataclass(frozen=True)
class Row:
    family: str
    direction: str
    pictures: str
    units: int
    oracle: str
    largest_difference: float
    by_later_input: float
    state_floats: int
    allocated_floats: int
    seconds: float  # of processor time, oracle included
    machine: str
    date: str


@torch.no_grad()
def rows(family: str, units: int, size: tuple[int, int]) -> list[Row]:
    made = lively_mimi(0) if family == "mimi-vae" else codec(family, 0, size)
    oracle, found = oracle_of(made), []
    for direction in DIRECTIONS:
        began = time.process_time()
        given = stream(made, family, direction, units, size=size)
        out, state = given.by_units(units)
        expected = given.expected(oracle)
        if out.shape != expected.shape:
            raise ValueError(f"{family}: expected {list(expected.shape)}, got {list(out.shape)}")
        first = stream(made, family, direction, CAUSAL_UNITS, size=size)
        other = stream(made, family, direction, CAUSAL_UNITS, seed=1, size=size)
        cut = first.whole.shape[1] // 2
        changed = replace(first, whole=torch.cat((first.whole[:, :cut], other.whole[:, cut:]), dim=1))
        one, two = (each.offline()[0] for each in (first, changed))
        half = one.shape[1] // 2
        found.append(
            Row(
                family,
                direction,
                "" if family == "mimi-vae" else f"{size[0]}x{size[1]}",
                units,
                oracle.name,
                float((out - expected).abs().max()),
                float((one[:, :half] - two[:, :half]).abs().max()),
                made.encoder_size if direction == "encode" else made.decoder_size,
                state.numel(),
                time.process_time() - began,
                machine(),
                time.strftime("%Y-%m-%d"),
            )
        )
        print(found[-1], flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=FAMILIES, choices=FAMILIES)
    parser.add_argument("--size", default="192x336", help="of pictures, height x width (default: %(default)s)")
    parser.add_argument("--units", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    height, width = (int(side) for side in args.size.split("x"))
    found = [row for family in args.families for row in rows(family, args.units, (height, width))]
    write(args.out, found)
    return int(any(row.largest_difference > TOLERANCE or row.by_later_input > TOLERANCE for row in found))


def write(path: Path, found: list[Row]) -> None:
    """Puts rows into the file; those of other families and sizes stay."""
    kept: dict[tuple[str, ...], dict[str, str]] = {}
    if path.exists():
        with path.open(newline="") as file:
            kept = {(r["family"], r["direction"], r["pictures"]): r for r in csv.DictReader(file)}
    for row in found:
        values = {k: f"{v:.3g}" if isinstance(v, float) else str(v) for k, v in asdict(row).items()}
        kept[row.family, row.direction, row.pictures] = values
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(kept[key] for key in sorted(kept))


if __name__ == "__main__":
    raise SystemExit(main())
