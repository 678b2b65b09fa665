"""What `bench_gpu.py` measures: the torch-cuda engines, and the same model in plain PyTorch as a user would write it.

Both have random weights of one geometry and one KV pool on the device; `call(step, batch)` returns a function that does
the work once, from inputs in host memory to results in host memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine_builder.config import FRAMES_PER_UNIT, ModelConfig
from engine_builder.model import backbone as model_backbone
from engine_builder.model.duplex import DuplexModel
from engine_builder.model.steps import PerceiveStep, PerformStep, RenderStep, ThinkStep
from engine_builder.targets.precision import set_precision
from triton_models.gpu.cuda.buckets import Limits
from triton_models.gpu.torch_cuda import codecs
from triton_models.gpu.torch_cuda.backbone import Backbone
from triton_models.gpu.torch_cuda.captured import CapturedCall, Lane
from triton_models.gpu.torch_cuda.engine import perceive_engine, render_engine
from triton_models.gpu.torch_cuda.solver_bank import SolverBank
from triton_models.gpu.torch_cuda.steps import PerformEngine, ThinkEngine, device_array
from triton_models.gpu.torch_cuda.weights import BackboneWeights
from triton_models.runtime.messages import HistoryView

Call = Callable[[], Any]
PAGE_TOKENS = 16
SLOTS = 2  # fed a unit in latency and history: the state and, mostly, one token of speech


class Setting:
    """One preset on one device: pool, page tables and inputs that both sides share. Tables name scattered pages."""

    def __init__(self, config: ModelConfig, device: torch.device, dtype: torch.dtype, batch: int, history: int) -> None:
        self.config, self.device, self.dtype = config, device, dtype
        self.batch, self.history = batch, history
        b = config.backbone
        self.pages = -(-history // PAGE_TOKENS)
        count = 1 + batch * self.pages
        shape = (b.layers, count, PAGE_TOKENS, b.kv_heads, b.head_dim)
        self.k_pool, self.v_pool = (torch.empty(shape, dtype=dtype, device=device).normal_() for _ in range(2))
        for pool in (self.k_pool, self.v_pool):
            pool[:, 0] = 0
        rng = np.random.default_rng(0)
        self.table = 1 + rng.permutation(count - 1).reshape(batch, self.pages)
        self.ranges = np.zeros((batch, self.pages, 2), dtype=np.int64)
        self.ranges[..., 1] = PAGE_TOKENS
        self.ranges[:, -1, 1] = history - (self.pages - 1) * PAGE_TOKENS

    def inputs(self, step: str, batch: int) -> dict[str, np.ndarray]:
        """Host inputs of a step of `costs.STEPS`, without the pools."""
        c, rng = self.config, np.random.default_rng(1)
        v, a, d, half = c.video, c.audio, c.backbone.hidden_size, c.backbone.head_dim // 2

        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal((batch, *shape), dtype=np.float32)

        z = {"z_video": normal(v.tokens, v.latent_dim), "z_audio": normal(a.tokens, a.latent_dim)}
        if step == "perceive":
            frames = rng.integers(0, 256, (batch, FRAMES_PER_UNIT, v.height, v.width, 3), dtype=np.uint8)
            return {"pcm": normal(a.unit_samples) * np.float32(0.1), "frames": frames}
        if step == "render":
            return z
        tokens = {"think": c.block_tokens, "slot": 1, "perform": c.latent_tokens}[step]
        angle = rng.uniform(0, 6, (batch, tokens, half)).astype(np.float32)
        shared = {
            "rope_cos": np.cos(angle),
            "rope_sin": np.sin(angle),
            "page_table": self.table[:batch],
            "page_range": self.ranges[:batch],
        }
        if step == "perform":
            noisy = {"x_video": z["z_video"], "x_audio": z["z_audio"]}
            return {**noisy, "tau": np.full(batch, 0.5, np.float32), **shared}
        block = step == "think"
        parts = {
            **z,
            "e_video": normal(v.perceive_tokens, d),
            "e_audio": normal(a.perceive_tokens, d),
            "ids": np.full((batch, c.language.text_tokens + 1), c.language.query_id, dtype=np.int64),
        }
        if not block:
            parts = {name: value[:, : int(name == "ids")] for name, value in parts.items()}
        mask = np.ones((batch, tokens, tokens), dtype=bool)
        return {**parts, **shared, "block_mask": mask}


class Ours:
    """The engines of the `torch-cuda` target."""

    name = "torch-cuda"

    def __init__(self, setting: Setting, precision: str) -> None:
        s, c = setting, setting.config
        self.setting = setting
        self.weights = BackboneWeights.random(c, s.device, precision, 0)
        self.limits, self.lane = Limits(s.batch, s.pages), Lane.on(s.device)
        self.backbone = Backbone(self.weights)
        self.slots: list[int] = []
        self.perceive = codecs.perceive_module(c, s.device)
        self.render = codecs.render_module(c, s.device)
        self.engines = {
            "perceive": perceive_engine(c, self.perceive, self.limits, self.lane),
            "think": ThinkEngine(self.backbone, self.limits, self.lane),
            "perform": PerformEngine(self.backbone, self.limits, self.lane),
            "render": render_engine(c, self.render, self.limits, self.lane),
        }
        sizes = {"perceive": self.perceive.state_size, "render": self.render.state_size}
        self.banks = {n: self.engines[n].bank(np.zeros(size, np.float32), s.batch) for n, size in sizes.items()}
        self.opened = {name: [bank.open() for _ in range(s.batch)] for name, bank in self.banks.items()}
        if s.device.type == "cuda":
            torch.cuda.synchronize(s.device)  # weights and pools were made on another stream than the lane's

    @cached_property
    def bank(self) -> SolverBank:
        s = self.setting
        return SolverBank(self.backbone, self.limits, self.lane, s.k_pool, s.v_pool, s.batch)

    def inputs(self, step: str, batch: int) -> dict[str, Any]:
        """The setting's inputs with the pool that the engine takes."""
        inputs: dict[str, Any] = self.setting.inputs(step, batch)
        if step in ("perceive", "render"):
            return inputs
        s = self.setting  # pools as the server has them: K and V of a think pass stay on the device
        return {**inputs, "k_pool": device_array(s.k_pool), "v_pool": device_array(s.v_pool)}

    def call(self, step: str, batch: int) -> Call:
        engine = self.engines["think" if step == "slot" else step]
        if step != "perform":
            inputs = self.inputs(step, batch)
            if step in self.banks:
                return lambda: self.banks[step].run(inputs, self.opened[step][:batch])
            return lambda: engine.run(inputs)
        slots, taus, steps = self.units(batch), [0.5] * batch, [0.0] * batch
        return lambda: self.bank.tick(slots, taus, steps)

    def units(self, batch: int) -> list[int]:
        """Slots of the solver bank that hold a unit each."""
        inputs = self.setting.inputs("perform", self.setting.batch)
        for b in range(len(self.slots), batch):
            x_video, x_audio, cos, sin = (inputs[n][b] for n in ("x_video", "x_audio", "rope_cos", "rope_sin"))
            view = HistoryView(inputs["page_table"][b], inputs["page_range"][b])
            self.slots.append(self.bank.put(x_video, x_audio, cos, sin, view))
        return self.slots[:batch]

    def graph(self, step: str, batch: int) -> CapturedCall:
        """The captured call of a step, its inputs filled: what the device does without the host's part."""
        self.call(step, batch)()
        if step == "perform":
            return self.bank.tick_call(self.units(batch))
        if step in self.banks:
            return self.banks[step].call(self.limits.rows(batch))
        call, _, _ = self.engines["think" if step == "slot" else step].call_for(self.inputs(step, batch))
        return call


def plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """The model's attention in the form for which PyTorch has its fastest kernels: K and V repeated for each head."""
    ratio = q.shape[2] // k.shape[2]
    k, v = (t.repeat_interleave(ratio, dim=2) if ratio > 1 else t for t in (k, v))
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask.unsqueeze(1))
    return out.transpose(1, 2).flatten(2)


class Plain:
    """The step functions of the model as they stand: bf16 matrices, gathered history, SDPA, no graph."""

    name = "plain PyTorch"

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        with torch.device("meta"):
            model = set_precision(DuplexModel(setting.config).eval(), str(setting.dtype).removeprefix("torch."))
        model.to_empty(device=setting.device)
        with torch.no_grad():
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                if "norm" in name:
                    tensor.fill_(1.0)
                else:
                    tensor.normal_(0.0, 0.02)
        self.steps = {
            "perceive": PerceiveStep(model),
            "think": ThinkStep(model),
            "perform": PerformStep(model),
            "render": RenderStep(model),
        }

    def call(self, step: str, batch: int) -> Call:
        s, module = self.setting, self.steps["think" if step == "slot" else step]
        inputs = s.inputs(step, batch)
        if step in ("perceive", "render"):
            kept = {"state": torch.zeros(batch, int(module.state_size), device=s.device)}
        else:
            kept = {"k_pool": s.k_pool, "v_pool": s.v_pool}

        def run() -> list[np.ndarray]:
            tensors = {name: torch.from_numpy(value).to(s.device) for name, value in inputs.items()}
            with torch.no_grad(), torch.device(s.device):
                results = module(**tensors, **kept)
                # K, V and states stay where they are, as ours do.
                return [t.cpu().numpy() for t in results[: 1 if step in ("think", "slot") else 2]]

        def patched() -> list[np.ndarray]:
            original = model_backbone.attend
            model_backbone.attend = plain_attention
            try:
                return run()
            finally:
                model_backbone.attend = original

        return patched
