"""Four processes over gloo: performer groups of 1, 2 and 4 ranks against one rank that does everything.

python sharded_ranks.py STORE_FILE -> one JSON line a rank: {"rank", "errors": {group size: largest difference}}
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from dataclasses import replace

import torch
import torch.distributed as dist

from engine_builder.config import ModelConfig
from engine_builder.presets import preset
from triton_models.gpu.kernels.history_index import HistoryIndex
from triton_models.gpu.torch_cuda import passes
from triton_models.gpu.torch_cuda.backbone import Backbone, History
from triton_models.gpu.torch_cuda.group.ulysses import Ulysses
from triton_models.gpu.torch_cuda.weights import BackboneWeights, expected_shapes

RANKS = 4
PAGES, PAGE_TOKENS = 7, 4
TAUS = [1.0, 0.6, 0.0]


def config() -> ModelConfig:
    """Six video tokens: they do not divide among four ranks. Four KV heads: one a rank at most."""
    tiny = preset("tiny")
    backbone = replace(tiny.backbone, hidden_size=48, layers=2, heads=8, kv_heads=4, head_dim=16, intermediate_size=64)
    return replace(tiny, backbone=backbone, video=replace(tiny.video, width=96))


class Unit:
    """Seeded weights, noise and history: the same on every rank."""

    def __init__(self, c: ModelConfig) -> None:
        g = torch.Generator().manual_seed(0)
        # Large enough for every term to matter.
        self.weights = BackboneWeights(
            c,
            {
                name: torch.ones(shape) if "norm" in name else 0.1 * torch.randn(shape, generator=g)
                for name, shape in expected_shapes(c).items()
            },
        )
        batch, half = 2, c.backbone.head_dim // 2
        self.x_video = torch.randn(batch, c.video.tokens, c.video.latent_dim, generator=g)
        self.x_audio = torch.randn(batch, c.audio.tokens, c.audio.latent_dim, generator=g)
        angle = torch.rand(batch, c.latent_tokens, half, generator=g) * 6
        self.cos, self.sin = angle.cos(), angle.sin()
        b = c.backbone
        self.k, self.v = (torch.randn(b.layers, 17, b.kv_heads, b.head_dim, generator=g) for _ in range(2))
        self.places = torch.arange(17) + PAGE_TOKENS
        table = torch.tensor([[1, 2, 3], [4, 5, 0]])
        span = torch.tensor([[[1, 4], [0, 4], [0, 2]], [[0, 4], [0, 1], [0, 0]]])
        self.index = HistoryIndex.empty(*table.shape, PAGE_TOKENS, "cpu")
        self.index.fill(table, span, PAGE_TOKENS)


def solve(unit: Unit, group: dist.ProcessGroup | None) -> tuple[torch.Tensor, torch.Tensor]:
    """All Euler steps; in a group over the heads of this rank alone."""
    backbone = Backbone(unit.weights, None if group is None else Ulysses(unit.weights.config, group, "cpu"))
    b, first = unit.weights.config.backbone, 0 if group is None else dist.get_rank(group) * backbone.groups
    pools = [torch.zeros(b.layers, PAGES, PAGE_TOKENS, backbone.groups, b.head_dim) for _ in range(2)]
    for pool, new in zip(pools, (unit.k, unit.v), strict=True):
        pool.flatten(1, 2).index_copy_(1, unit.places, new[:, :, first : first + backbone.groups])
    history = History(pools[0], pools[1], unit.index)
    x_video, x_audio = unit.x_video, unit.x_audio
    for tau, following in itertools.pairwise(TAUS):
        at = torch.full((2,), tau)
        video, audio = passes.perform(backbone, history, x_video, x_audio, at, unit.cos, unit.sin)
        x_video, x_audio = x_video + (following - tau) * video, x_audio + (following - tau) * audio
    return x_video, x_audio


def run(number: int, path: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(path, RANKS), rank=number, world_size=RANKS)
    groups = {size: dist.new_group(list(range(size))) for size in (1, 2, 4)}
    unit = Unit(config())
    errors = {}
    with torch.no_grad():
        expected = solve(unit, None) if number == 0 else None
        for size, group in groups.items():
            if number >= size:
                continue
            result = solve(unit, group)
            if expected is not None:
                errors[size] = max(float((a - b).abs().max()) for a, b in zip(result, expected, strict=True))
    scale = float(expected[0].abs().max()) if expected is not None else 0.0
    # One write: the ranks share a pipe.
    sys.stdout.write(json.dumps({"rank": number, "errors": errors, "scale": scale}) + "\n")
    sys.stdout.flush()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    children = []
    for i in range(RANKS):
        if (child := os.fork()) == 0:
            run(i, sys.argv[1])
            os._exit(0)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sys.exit(max(map(abs, codes)))
