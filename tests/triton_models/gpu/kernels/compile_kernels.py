"""Compiles every kernel that think and perform launch at the presets' geometry, for one GPU, on a machine without any.

    python compile_kernels.py 90 132 232448 bfloat16 v0.1-8b v0.2-8b -> a JSON line for each kernel: see `resources`

Of the presets after the first only attention is compiled, whose registers depend on more than widths.

The passes run on meta tensors: their launches go through Triton's own binder with a driver that only knows the target,
so argument types, alignment and block shapes are those of a real run. Run it with TRITON_INTERPRET=0.
"""

from __future__ import annotations

import contextlib
import io
import itertools
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
from triton import knobs
from triton.backends.compiler import GPUTarget

from engine_builder.config import ModelConfig
from engine_builder.presets import preset
from triton_models.gpu.kernels import fused, paged_attention
from triton_models.gpu.kernels.history_index import HistoryIndex
from triton_models.gpu.kernels.paged_attention import Chip
from triton_models.gpu.torch_cuda import passes
from triton_models.gpu.torch_cuda.backbone import Backbone, History
from triton_models.gpu.torch_cuda.weights import BackboneWeights, expected_shapes, is_matrix

PAGES, PAGE_TOKENS, POOL_PAGES = 64, 16, 2048
TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
# Products, waits for them, exp, conversions one by one and in pairs (CUDA binary utilities, instruction set tables)
COUNTED = ("HGMMA", "HMMA", "WARPGROUP", "MUFU", "F2F", "F2FP")


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


def main(capability: int, chip: Chip, dtype: torch.dtype, configs: list[ModelConfig]) -> None:
    triton.runtime.driver.set_active(TargetOnly(capability))
    kernels: dict[str, Any] = {}
    launch = triton.runtime.jit.JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        if config is not configs[0] and self is not paged_attention._attend_kernel:
            return
        with contextlib.redirect_stdout(io.StringIO()) as log:  # Triton prints what ptxas said
            kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        kernels.setdefault(kernel.hash, (kernel, log.getvalue()))

    knobs.nvidia.dump_ptxas_log = True
    triton.runtime.jit.JITFunction.run = compile_only
    paged_attention.Chip.of = classmethod(lambda cls, device: chip)
    with torch.device("meta"):
        for config, batch in itertools.product(configs, (1, 8) if capability == 90 else (8,)):
            run_passes(replace(config, backbone=replace(config.backbone, layers=1)), batch, dtype)
        config = configs[0]  # of the others nothing but attention is compiled
        if capability >= 89:  # the first with FP8
            fused.to_fp8(torch.empty(256, configs[0].backbone.intermediate_size, dtype=dtype))
    for kernel, log in kernels.values():
        print(
            json.dumps({"name": kernel.name, "shared": kernel.metadata.shared, **resources(kernel.asm["cubin"], log)})
        )


def run_passes(config: ModelConfig, batch: int, dtype: torch.dtype) -> None:
    """A block pass, a slot pass and a solver step."""
    b, v, a = config.backbone, config.video, config.audio
    weights = BackboneWeights(
        config,
        {
            name: torch.empty(shape, dtype=dtype if is_matrix(name) else torch.float32)
            for name, shape in expected_shapes(config).items()
        },
    )
    backbone = Backbone(weights)
    pool = torch.empty(b.layers, POOL_PAGES, PAGE_TOKENS, b.kv_heads, b.head_dim, dtype=dtype)
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
        passes.think(
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


def resources(cubin: bytes, log: str) -> dict[str, int | bool]:
    """Registers a thread, bytes of stack and of spills, whether ptxas gave up overlapping wgmma with other work, and
    how often some instructions stand in the machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, code = (
            subprocess.run([TOOL, option, file.name], check=True, capture_output=True, text=True).stdout
            for option in ("--dump-resource-usage", "--dump-sass")
        )
    found, spilled = re.search(r"REG:(\d+) STACK:(\d+)", usage), re.search(r"(\d+) bytes spill stores", log)
    if found is None or spilled is None:
        raise ValueError(f"cuobjdump, ptxas: expected REG, STACK and spills, got {usage[-300:]!r} and {log[-300:]!r}")
    instructions = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?([A-Z0-9_]+)", code, re.MULTILINE)
    return {
        "registers": int(found[1]),
        "stack": int(found[2]),
        "spilled": int(spilled[1]),
        "serialized": bool(re.search("C7510|C7515", log)),
        "instructions": len(instructions),
        **{name: instructions.count(name) for name in COUNTED},
    }


if __name__ == "__main__":
    capability_, processors, shared, precision, *names = sys.argv[1:]
    main(int(capability_), Chip(int(processors), int(shared)), getattr(torch, precision), [preset(n) for n in names])
