"""`python -m triton_models.measure`: measures step costs and keeps them as costs.csv next to the engines.

The launcher runs this by itself when an engine directory has no costs of this machine yet; run it by hand on a quiet
machine to have better figures. Scheduler, admission and `python -m triton_models.plan --costs` read the file. It goes
below ~/.cache where the engines are read-only.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from engine_builder.manifest import Manifest, ManifestError
from engine_builder.options import whole

from .runtime.budget.probe import COSTS, keeping_place, probe
from .runtime.engines.devices import Devices
from .runtime.engines.engine import PERFORMER_STEPS, THINKER_STEPS, EngineError
from .runtime.kv.pool import PoolError
from .service.load import load_engines


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 measured, 1 the engines cannot be loaded."""
    parser = argparse.ArgumentParser(
        prog="python -m triton_models.measure",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--engines", type=Path, required=True, metavar="DIR", help="engine directory")
    parser.add_argument("--threads", type=whole(1, 1024), default=1, metavar="N", help="of each engine (default: 1)")
    parser.add_argument("--device", default="", metavar="N[,M..]", help="of GPU engines: as for triton_models.launch")
    args = parser.parse_args(argv)
    try:
        tokens = Manifest.load(args.engines).limits["page_tokens"]
        apart = Devices.parse(args.device).apart
        roles = [THINKER_STEPS, PERFORMER_STEPS] if apart else [(*THINKER_STEPS, *PERFORMER_STEPS)]
        engines, *performer = [load_engines(args.engines, steps, args.threads, args.device) for steps in roles]
        say = partial(print, flush=True)
        table = probe(engines, args.engines, tokens, args.threads, say, args.device, *performer)
    except (ManifestError, EngineError, PoolError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for cost in table.costs:
        print(f"{cost.step:9s} batch {cost.batch:2d}  history {cost.history:5d}  {cost.ms:8.2f} ms")
    print(keeping_place(args.engines) / COSTS)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
