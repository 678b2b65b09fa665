"""Every call that can come, once, before the first session: graphs are captured, kernels compiled and chosen.

Without it the first unit of each size would wait for that, seconds where a unit has 160 ms.
"""

from __future__ import annotations

import numpy as np

from engine_builder.manifest import ENCODE

from ..runtime.engines.engine import EngineSet
from ..runtime.engines.inputs import step_inputs
from ..runtime.engines.solver import Solver
from ..runtime.kv.pool import NULL_PAGE, Pool
from ..runtime.thinker.thinker import PROMPT_CHUNK
from .cuda.buckets import Limits


def rehearse(engines: EngineSet, pool: Pool, solver: Solver | None) -> None:
    """Runs the loaded steps in all sizes. The pool is read and not written: K and V of a think pass are dropped."""
    limits = Limits(engines.max_batch, engines.max_pages or 1)
    for step, engine in engines.engines.items():
        if step == "perform" and hasattr(solver, "rehearse"):
            solver.rehearse()  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
            continue
        if (bank := getattr(engine, "kept", None)) is not None:
            bank.rehearse()
            continue
        for rows in (1,) if step == ENCODE else limits.all_rows():  # references are encoded one by one
            if step in ("perceive", "render", ENCODE):
                engine.run(step_inputs(engines.config, engines.state_sizes, step, rows, 0))
                continue
            for name in ("think", "slot") if step == "think" else (step,):
                own = step_inputs(engines.config, engines.state_sizes, name, rows, 0)
                for pages in limits.all_pages():
                    engine.run({**own, **_history(rows, pages), "k_pool": pool.k, "v_pool": pool.v})
        if step == "think":
            engine.run({**_prompt(engines), **_history(1, 1), "k_pool": pool.k, "v_pool": pool.v})
    for engine in engines.engines.values():
        if hasattr(engine, "keep_compiled"):
            engine.keep_compiled()  # pyright: ignore[reportAttributeAccessIssue]


def _history(rows: int, pages: int) -> dict[str, np.ndarray]:
    """A history of the null page, of which one token is visible in the last place: it counts as `pages` pages long."""
    ranges = np.zeros((rows, pages, 2), dtype=np.int64)
    ranges[:, -1, 1] = 1
    return {"page_table": np.full((rows, pages), NULL_PAGE, dtype=np.int64), "page_range": ranges}


def _prompt(engines: EngineSet) -> dict[str, np.ndarray]:
    """A whole chunk of a prompt: only ids, causal."""
    slot = step_inputs(engines.config, engines.state_sizes, "slot", 1, 0)
    long = {name: np.repeat(slot[name], PROMPT_CHUNK, axis=1) for name in ("ids", "rope_cos", "rope_sin")}
    return {**slot, **long, "block_mask": np.tri(PROMPT_CHUNK, dtype=bool)[None]}
