"""Fills Triton's cache with the kernels that a GPU day launches, without a GPU: on many cores beside other work, or at
home for the kit.

    TRITON_CACHE_DIR=DIR python prewarm.py [--jobs N] [--sets parity ...] [--report FILE]

Passes run on meta tensors under a driver that only knows its target (`compile_kernels`), so signatures, alignment and
block shapes, and with them the cache's keys, are those of the real launches. A kernel that the cache has costs nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # before Triton is imported; without a GPU jit.py would choose the interpreter
ROOT = Path(__file__).resolve().parents[4]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/triton_models/gpu/kernels"), str(ROOT / "tests/bench/gpu")]

PAGE_TOKENS = 16
CAPABILITY, MULTIPROCESSORS, SHARED_BYTES = 90, 132, 232448  # H100 and H200
SETS = ("parity", "bench", "served")
SMOKE = "smoke"  # a few: that they compile with this Triton


@dataclass(frozen=True)
class Launches:
    """One pass of one preset: `rows` of a batch over a history bucket of `pages`."""

    preset: str
    kind: str  # perform, think, slot or put
    rows: int
    pages: int
    dtype: str = "bfloat16"
    bank: bool = False  # perform from a solver bank, whose index has more rows and may be wider


def launches(sets: tuple[str, ...]) -> Iterator[Launches]:
    from gpu_work import history_tokens
    from served import Amount, room

    from engine_builder.presets import preset
    from triton_models.gpu.cuda.buckets import Limits

    steps = ("perform", "think", "slot")
    if SMOKE in sets:
        yield Launches("tiny", "put", 1, 4)
        yield from (Launches("tiny", kind, 1, 4, "fp8", bank=kind == "perform") for kind in steps)
    if "parity" in sets:
        for name in ("tiny", "v0.1-8b", "v0.1-0.6b"):
            for dtype in ("bfloat16", "float32", "fp8"):
                for rows, pages in ((1, 64), (2, 128), (4, 128)):
                    yield from (Launches(name, kind, rows, pages, dtype) for kind in steps[:2])
    if "bench" in sets:
        for name in ("v0.1-8b", "v0.1-1.7b", "v0.1-0.6b", "v0.2-8b"):
            pages = -(-history_tokens(preset(name), 8.0, 2) // PAGE_TOKENS)
            yield Launches(name, "put", 1, pages)
            for rows in (1, 2, 4, 8):
                yield from (Launches(name, kind, rows, pages, bank=kind == "perform") for kind in steps)
        for rows, kind in ((1, "perform"), (4, "perform"), (1, "think"), (4, "think"), (1, "slot"), (4, "slot")):
            yield Launches("v0.1-8b", kind, rows, 64, "fp8")  # what rounds to float8 knows nothing of the history
    if "served" in sets:
        amount = Amount.day()
        limits = Limits(amount.batch, room(preset("v0.1-8b"), amount)[0])
        for pages in limits.all_pages():
            yield Launches("v0.1-8b", "put", 1, pages)
            for rows in limits.all_rows():
                yield from (Launches("v0.1-8b", kind, rows, pages, bank=kind == "perform") for kind in steps)


def compile_some(work: Any, done: Any) -> None:
    """A process: compiles what it takes from `work`, and tells `done` of each new kernel and of each error."""
    import torch
    import triton
    from compile_kernels import TargetOnly

    from triton_models.gpu.kernels import paged_attention

    triton.runtime.driver.set_active(TargetOnly(CAPABILITY))
    launch, seen = triton.runtime.jit.JITFunction.run, set()

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        begin = time.perf_counter()
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        if kernel.hash not in seen:
            seen.add(kernel.hash)
            done.put((kernel.hash, kernel.name, time.perf_counter() - begin))

    triton.runtime.jit.JITFunction.run = compile_only
    chip = paged_attention.Chip(MULTIPROCESSORS, SHARED_BYTES)
    paged_attention.Chip.of = classmethod(lambda cls, device: chip)
    for task in iter(work.get, None):
        try:
            with torch.device("meta"):
                run(task)
        except Exception as error:  # the stage itself will say it again, and louder
            done.put(("error", f"{task}: {type(error).__name__}: {error}"[:300], 0.0))
    done.put(None)


def run(task: Launches) -> None:
    """The pass on meta tensors, one layer deep: all layers launch the same kernels."""
    import torch

    from engine_builder.presets import preset
    from engine_builder.targets.precision import FP8, dtype_of
    from triton_models.gpu.kernels.history_index import HistoryIndex
    from triton_models.gpu.torch_cuda import passes
    from triton_models.gpu.torch_cuda.backbone import Backbone, History
    from triton_models.gpu.torch_cuda.weights import BackboneWeights, expected_shapes, is_matrix

    fp8, rows, config = task.dtype == "fp8", task.rows, preset(task.preset)
    dtype = dtype_of(task.dtype)
    config = replace(config, backbone=replace(config.backbone, layers=1))
    b, v, a = config.backbone, config.video, config.audio
    index = HistoryIndex.empty(9 if task.bank or task.kind == "put" else rows, task.pages, PAGE_TOKENS, "meta")
    tables = torch.empty(rows, task.pages, dtype=torch.int64), torch.empty(rows, task.pages, 2, dtype=torch.int64)
    if task.kind == "put":
        index.fill(*tables, PAGE_TOKENS, torch.empty(1, dtype=torch.int32))
        return
    if not task.bank:
        index.fill(*tables, PAGE_TOKENS)
    shapes = expected_shapes(config, fp8)
    kinds = {name: dtype if is_matrix(name) else torch.float32 for name in shapes}
    if fp8:
        kinds |= {name.removesuffix(".scale"): FP8 for name in shapes if name.endswith(".scale")}
    weights = BackboneWeights(config, {name: torch.empty(shape, dtype=kinds[name]) for name, shape in shapes.items()})
    pool = torch.empty(b.layers, 2048, PAGE_TOKENS, b.kv_heads, b.head_dim, dtype=dtype)
    order = torch.empty(rows, dtype=torch.int32) if task.bank else None
    history, backbone = History(pool, pool, index, rows=order), Backbone(weights)
    if task.kind == "perform":
        x = [torch.empty(rows, part.tokens, part.latent_dim) for part in (v, a)]
        rope = torch.empty(rows, config.latent_tokens, b.head_dim // 2)
        passes.perform(backbone, history, *x, torch.empty(rows), rope, rope)
        return
    block = task.kind == "think"
    tokens = config.block_tokens if block else 1
    z = [torch.empty(rows, part.tokens * block, part.latent_dim) for part in (v, a)]
    e = [torch.empty(rows, part.perceive_tokens * block, b.hidden_size) for part in (v, a)]
    ids = torch.empty(rows, config.language.text_tokens + 1 if block else 1, dtype=torch.int64)
    rope = torch.empty(rows, tokens, b.head_dim // 2)
    mask = torch.empty(rows, tokens, tokens, dtype=torch.bool) if block else None
    passes.think(backbone, history, *z, *e, ids, rope, rope, mask)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--sets", nargs="+", default=SETS, choices=(*SETS, SMOKE))
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    begin = time.perf_counter()
    todo = list(dict.fromkeys(launches(tuple(args.sets))))
    context = multiprocessing.get_context("spawn")
    work, done = context.Queue(), context.Queue()
    for task in [*todo, *[None] * args.jobs]:
        work.put(task)
    processes = [context.Process(target=compile_some, args=(work, done)) for _ in range(args.jobs)]
    for process in processes:
        process.start()
    found: dict[str, tuple[str, float]] = {}
    errors, running = [], args.jobs
    while running:
        item = done.get()
        if item is None:
            running -= 1
        elif item[0] == "error":
            errors.append(item[1])
        else:
            found.setdefault(item[0], item[1:])
    summary = {
        "passes": len(todo),
        "kernels": len(found),
        "seconds": round(time.perf_counter() - begin, 1),
        "compile_seconds": round(sum(seconds for _, seconds in found.values()), 1),
        "errors": errors,
    }
    print(json.dumps(summary), flush=True)
    if args.report:
        args.report.write_text(json.dumps(summary, indent=1) + "\n")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
