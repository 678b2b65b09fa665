"""The attention kernel alone, in every block shape that fits, beside the shape that `choose_tiling` takes (--tune)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from gpu_engines import PAGE_TOKENS, SLOTS, Setting
from gpu_plan import Clock, Plan, config_of, say
from gpu_work import Ceilings, attention_work, history_tokens

from engine_builder.config import ModelConfig
from triton_models.gpu.kernels.history_index import HistoryIndex
from triton_models.gpu.kernels.paged_attention import Chip, Tiling, choose_tiling, paged_attention


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
    index = HistoryIndex.empty(*s.table.shape, PAGE_TOKENS, device)
    index.fill(torch.from_numpy(s.table).to(device), torch.from_numpy(s.ranges).to(device), PAGE_TOKENS)

    def normal(heads: int) -> torch.Tensor:
        return torch.empty(batch, tokens, heads, b.head_dim, device=device, dtype=dtype).normal_()

    q, k, v = normal(b.heads), normal(b.kv_heads), normal(b.kv_heads)
    width, item = index.tokens.shape[1], q.element_size()
    chosen = choose_tiling(batch, tokens, b.heads, b.kv_heads, b.head_dim, item, width, Chip.of(device))
    return chosen, lambda tiling: paged_attention(q, k, v, s.k_pool[0], s.v_pool[0], index, tiling=tiling)


def tilings(chosen: Tiling, smoke: bool) -> Iterator[Tiling]:
    """The chosen block shape first, then those that differ from it in one number: each compiles for seconds."""
    yield chosen
    if smoke:
        return
    changes = {
        "rows": () if chosen.rows == 16 else (64, 128),
        "keys": (32, 64, 128),
        "stages": (3, 5),
        "warps": (4, 8),
        "splits": {max(1, chosen.splits // 2), chosen.splits * 2},
    }
    for name, values in changes.items():
        for value in values:
            if value != getattr(chosen, name):
                yield replace(chosen, **{name: value})
