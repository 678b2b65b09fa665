"""Compiles every kernel that think and perform launch at a preset's geometry, for one GPU, on a machine without any.

    python compile_kernels.py 90 132 232448 v0.1-8b -> JSON lines: kernel, registers, stack, shared

The passes run on meta tensors: their launches go through Triton's own binder with a driver that only knows the target,
so argument types, alignment and block shapes are those of a real run. Run it with TRITON_INTERPRET=0.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from engine_builder.config import ModelConfig, preset
from triton_models.gpu.kernels import paged_attention
from triton_models.gpu.kernels.history_index import HistoryIndex
from triton_models.gpu.kernels.paged_attention import Chip
from triton_models.gpu.torch_cuda import passes
from triton_models.gpu.torch_cuda.backbone import Backbone, History
from triton_models.gpu.torch_cuda.weights import BackboneWeights, expected_shapes, is_matrix

PAGES, PAGE_TOKENS, POOL_PAGES = 64, 16, 2048


class TargetOnly:
    """A Triton driver that says which GPU to compile for and can launch nothing."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def main(capability: int, chip: Chip, config: ModelConfig) -> None:
    triton.runtime.driver.set_active(TargetOnly(capability))
    kernels: dict[str, Any] = {}
    launch = triton.runtime.jit.JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        kernels.setdefault(kernel.hash, kernel)

    triton.runtime.jit.JITFunction.run = compile_only
    paged_attention.Chip.of = classmethod(lambda cls, device: chip)
    config = replace(config, backbone=replace(config.backbone, layers=1))
    with torch.device("meta"):
        for batch in (1, 8) if capability == 90 else (8,):
            run_passes(config, batch)
    for kernel in kernels.values():
        print(json.dumps({"name": kernel.name, "shared": kernel.metadata.shared, **resources(kernel.asm["cubin"])}))


def run_passes(config: ModelConfig, batch: int) -> None:
    """A block pass, a slot pass and a solver step, in bf16, and the writing of K and V."""
    b, v, a = config.backbone, config.video, config.audio
    weights = BackboneWeights(
        config,
        {
            name: torch.empty(shape, dtype=torch.bfloat16 if is_matrix(name) else torch.float32)
            for name, shape in expected_shapes(config).items()
        },
    )
    backbone = Backbone(weights)
    pool = torch.empty(b.layers, POOL_PAGES, PAGE_TOKENS, b.kv_heads, b.head_dim, dtype=torch.bfloat16)
    index = HistoryIndex.empty(batch, PAGES, PAGE_TOKENS, "meta")
    index.fill(
        torch.empty(batch, PAGES, dtype=torch.int64), torch.empty(batch, PAGES, 2, dtype=torch.int64), PAGE_TOKENS
    )
    history = History(pool, pool, index)
    z_video, z_audio = torch.empty(batch, v.tokens, v.latent_dim), torch.empty(batch, a.tokens, a.latent_dim)

    def rope(tokens: int) -> torch.Tensor:
        return torch.empty(batch, tokens, b.head_dim // 2)

    cos = rope(config.latent_tokens)
    passes.perform(backbone, history, z_video, z_audio, torch.empty(batch), cos, cos)
    for tokens, ids in ((config.block_tokens, config.language.text_tokens + 1), (1, 1)):
        block = tokens > 1
        thought = passes.think(
            backbone,
            history,
            z_video[:, : v.tokens if block else 0],
            z_audio[:, : a.tokens if block else 0],
            torch.empty(batch, v.perceive_tokens if block else 0, b.hidden_size),
            torch.empty(batch, a.perceive_tokens if block else 0, b.hidden_size),
            torch.empty(batch, ids, dtype=torch.int64),
            rope(tokens),
            rope(tokens),
            torch.empty(batch, tokens, tokens, dtype=torch.bool) if block else None,
        )
        passes.commit(thought, history, torch.empty(batch, tokens, dtype=torch.int64))


def resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread and bytes of stack (where spilled registers go) of a compiled kernel."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise ValueError(f"cuobjdump: expected REG and STACK, got {text[-300:]!r}")
    return {"registers": int(found[1]), "stack": int(found[2])}


if __name__ == "__main__":
    capability_, processors, shared, name = sys.argv[1:5]
    main(int(capability_), Chip(int(processors), int(shared)), preset(name))
