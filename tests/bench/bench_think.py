"""The thinker's step against what a user would write first: transformers' Qwen3 with its own cache.

Both have the same backbone weights and run the same unit on one thread: a context block of tiny's size (14 tokens, of
which ours also projects latents and perceptions), then two slot tokens, over a history of the same length. After each
unit the transformers cache is cropped and our page table is left as it is, so the history stays constant.

    python tests/bench/bench_think.py --checkpoint build/checkpoints/tiny --engines build/engines/tiny
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from summary import machine, merge
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM

from engine_builder.checkpoint import load_checkpoint
from engine_builder.layout import UnitLayout, rope_tables
from triton_models.runtime.engines.engine import EngineSet
from triton_models.service.load import load_engines

SLOT_PASSES = 2  # state, then one word; the rest of the slots end early


def ours(engines: EngineSet, history: int, page_tokens: int) -> Callable[[], None]:
    """One unit through the think engine: block pass and slot passes over `history` paged tokens."""
    c, b = engines.config, engines.config.backbone
    pages = -(-history // page_tokens)
    rng = np.random.default_rng(0)
    pool = rng.standard_normal((2, b.layers, pages + 1, page_tokens, b.kv_heads, b.head_dim), dtype=np.float32)
    ranges = np.full((1, pages, 2), (0, page_tokens), dtype=np.int64)
    ranges[0, -1, 1] = history - (pages - 1) * page_tokens
    paged = {
        "page_table": np.arange(1, pages + 1, dtype=np.int64)[None],
        "page_range": ranges,
        "k_pool": pool[0],
        "v_pool": pool[1],
    }
    layout = UnitLayout.of(c)

    def rope(start: int, count: int) -> dict[str, np.ndarray]:
        cos, sin = rope_tables(b, np.arange(start, start + count)[None])
        return {"rope_cos": cos, "rope_sin": sin}

    def parts(units: int, ids: np.ndarray) -> dict[str, np.ndarray]:
        shapes = {
            "z_video": (c.video.tokens, c.video.latent_dim),
            "z_audio": (c.audio.tokens, c.audio.latent_dim),
            "e_video": (c.video.perceive_tokens, b.hidden_size),
            "e_audio": (c.audio.perceive_tokens, b.hidden_size),
        }
        return {n: np.zeros((1, units * t, d), dtype=np.float32) for n, (t, d) in shapes.items()} | {"ids": ids}

    tokens = layout.slot_offset
    block = parts(1, np.ones((1, c.language.text_tokens + 1), dtype=np.int64))
    block |= rope(history, tokens) | {"block_mask": np.ones((1, tokens, tokens), dtype=bool)} | paged
    slot = parts(0, np.array([[c.language.first_state_id]], dtype=np.int64))
    slot |= {"block_mask": np.ones((1, 1, 1), dtype=bool)} | paged

    def unit() -> None:
        engines["think"].run(block)
        for i in range(SLOT_PASSES):
            engines["think"].run(slot | rope(history + tokens + i, 1))

    return unit


def theirs(checkpoint: Path, history: int, tokens: int) -> Callable[[], None]:
    """The same through Qwen3ForCausalLM with a DynamicCache."""
    model = load_checkpoint(checkpoint)
    b = model.config.backbone
    qwen = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=model.config.language.vocab_size,
            hidden_size=b.hidden_size,
            intermediate_size=b.intermediate_size,
            num_hidden_layers=b.layers,
            num_attention_heads=b.heads,
            num_key_value_heads=b.kv_heads,
            head_dim=b.head_dim,
            tie_word_embeddings=b.tied_head,
            rope_parameters={"rope_type": "default", "rope_theta": b.rope_theta},
        )
    ).eval()
    names = {n: t for n, t in model.state_dict().items() if n.startswith(("model.", "lm_head."))}
    missing, unexpected = qwen.load_state_dict(names, strict=False)
    if unexpected or [n for n in missing if n != "lm_head.weight"]:
        raise RuntimeError(f"backbone weights do not fit transformers' Qwen3: {missing}, {unexpected}")
    cache = DynamicCache()
    with torch.inference_mode():
        qwen(torch.ones(1, history, dtype=torch.int64), past_key_values=cache, use_cache=True, logits_to_keep=1)

    def unit() -> None:
        with torch.inference_mode():
            qwen(torch.ones(1, tokens, dtype=torch.int64), past_key_values=cache, use_cache=True, logits_to_keep=1)
            for _ in range(SLOT_PASSES):
                qwen(torch.ones(1, 1, dtype=torch.int64), past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache.crop(-(tokens + SLOT_PASSES))

    return unit


def paired(first: Callable[[], None], second: Callable[[], None], rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds of both, taken in turn, so that a machine that slows down slows both."""
    times: tuple[list[float], list[float]] = ([], [])
    for index in range(rounds + 5):
        for which, call in enumerate((first, second)):
            begin = time.perf_counter()
            call()
            if index >= 5:
                times[which].append((time.perf_counter() - begin) * 1e3)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("build/checkpoints/tiny"))
    parser.add_argument("--engines", type=Path, default=Path("build/engines/tiny"))
    parser.add_argument("--history", type=int, nargs="+", default=[64, 256, 640], help="cached tokens")
    parser.add_argument("--rounds", type=int, default=60, help="paired runs of each (default: 60)")
    parser.add_argument("--out", type=Path, default=Path("build/runs/bench"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    engines = load_engines(args.engines, ("think",), threads=1)
    tokens = engines.config.block_tokens
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for history in args.history:
        a, b = paired(ours(engines, history, 16), theirs(args.checkpoint, history, tokens), args.rounds)
        ratio = statistics.median(y / x for x, y in zip(a, b, strict=True))
        rows.append((history, round(statistics.median(a), 3), round(statistics.median(b), 3), round(ratio, 3)))
        print(f"history {history:5d}: ours {rows[-1][1]:7.2f} ms, transformers {rows[-1][2]:7.2f} ms, x{ratio:.2f}")
    with (args.out / "think.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("history_tokens", "ours_ms", "transformers_ms", "transformers_over_ours"))
        writer.writerows(rows)
    merge(args.out, {"think_vs_transformers": rows[-1][3], "think_history_tokens": rows[-1][0], "machine": machine()})


if __name__ == "__main__":
    main()
