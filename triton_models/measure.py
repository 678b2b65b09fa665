"""`python -m triton_models.measure`: measures step costs and keeps them as costs.csv next to the engines.

The launcher runs this by itself when an engine directory has no costs of this machine yet; run it by hand on a quiet
machine to have better figures. Scheduler, admission and `python -m triton_models.plan --costs` read the file. It goes
below $TMPDIR where the engines are read-only.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from engine_builder.manifest import Manifest, ManifestError

from .runtime.cost_probe import COSTS, keeping_place, probe
from .runtime.engine import EngineError


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 measured, 1 the engines cannot be loaded."""
    parser = argparse.ArgumentParser(
        prog="python -m triton_models.measure",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--engines", type=Path, required=True, metavar="DIR", help="engine directory")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of each engine (default: 1)")
    args = parser.parse_args(argv)
    try:
        manifest = Manifest.load(args.engines)
        table = probe(args.engines, manifest.limits["page_tokens"], args.threads, lambda step: print(step, flush=True))
    except (ManifestError, EngineError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for cost in table.costs:
        print(f"{cost.step:9s} batch {cost.batch:2d}  history {cost.history:5d}  {cost.ms:8.2f} ms")
    print(keeping_place(args.engines) / COSTS)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
