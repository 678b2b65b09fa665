"""`make chaos`: every attack and every fault beside one healthy session -> build/runs/chaos/table.md (15 minutes).

python -m tests.chaos --engines build/engines/tutor [--rows WORD ..] [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/chaos"), str(ROOT / "tests/triton_models")]

from attacks import ATTACKS  # noqa: E402
from faults import FAULTS, OUTAGES  # noqa: E402
from gateway import FLOODS  # noqa: E402
from house import House, table  # noqa: E402

QUIET_UNITS = 250


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=Path, default=Path("build/engines/tutor"))
    parser.add_argument("--out", type=Path, default=Path("build/runs/chaos"))
    parser.add_argument("--rows", nargs="+", default=[], metavar="WORD", help="only rows with one of these words")
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    house = House(args.engines.resolve(), args.out.resolve(), "--max-restarts", "100")
    results = []
    begin = time.monotonic()
    try:
        quiet = house.learn(QUIET_UNITS)
        print(f"quiet: {quiet.share:.1%} of {quiet.units} units on time", flush=True)
        for name, act in {**ATTACKS, **FLOODS, **FAULTS, **OUTAGES}.items():
            if args.rows and not any(word in name for word in args.rows):
                continue
            results.append(house.run(name, act, outage=name in OUTAGES))
            print(" | ".join(results[-1].cells()), *results[-1].wrong, sep="  !! ", flush=True)
            (args.out / "table.md").write_text(
                table(results) + f"\nIn quiet: {quiet.share:.1%} of {quiet.units} units on time.\n"
            )
    finally:
        code = house.stop()
    wrong = {result.row: result.wrong for result in results if result.wrong or result.left}
    (args.out / "wrong.json").write_text(json.dumps(wrong, indent=1))
    print(f"{len(results)} rows in {(time.monotonic() - begin) / 60:.0f} minutes, {len(wrong)} went wrong: {wrong}")
    return int(bool(wrong) or code != 0)


if __name__ == "__main__":
    sys.exit(main())
