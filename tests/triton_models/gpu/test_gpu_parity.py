"""On an NVIDIA GPU: the torch-cuda engines against the CPU oracle, one graph launch a call, pools across processes.

pytest -m gpu tests/triton_models/gpu/test_gpu_parity.py
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from step_oracle import Arrays, draw_inputs, reference

from engine_builder.build import BuildOptions, build_engines
from engine_builder.checkpoint import random_model, save_checkpoint
from engine_builder.config import ModelConfig
from engine_builder.manifest import STEPS
from engine_builder.model.steps import step_specs
from engine_builder.presets import preset
from engine_builder.targets.precision import set_precision
from triton_models.gpu.cuda.cuda_runtime import CudaRuntime
from triton_models.gpu.cuda.device_pool import DevicePool
from triton_models.gpu.torch_cuda.engine import load_engines
from triton_models.runtime.kv.pages import Span

pytestmark = pytest.mark.gpu
PAGE_TOKENS, PAGES = 16, 70  # two history buckets
# Largest error of a result relative to its norm. bf16 rounds each product's inputs to 2^-9.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2, "fp8": 5e-2}  # fp8: of the model that is rounded alike


def config_of(name: str) -> ModelConfig:
    """A preset of full width, but for the words it knows, one or two layers deep: so that the CPU oracle keeps up."""
    config, words = preset(name), preset("tiny").language
    language = replace(words, slots=config.language.slots, text_tokens=config.language.text_tokens)
    layers = 1 if name == "v0.1-8b" else 2
    return replace(config, language=language, backbone=replace(config.backbone, layers=layers))


@pytest.fixture(scope="module", params=["tiny", "v0.1-8b", "v0.1-0.6b"])
def model(request):
    return random_model(config_of(request.param), 0)


@pytest.fixture(scope="module", params=TOLERANCE)
def engines(request, model, tmp_path_factory):
    root = tmp_path_factory.mktemp("gpu")
    save_checkpoint(model, root / "checkpoint")
    options = BuildOptions(target="torch-cuda", precision=request.param, max_batch=4, max_pages=128)
    build_engines(root / "checkpoint", root / "engines", options)
    exact = copy.deepcopy(model)
    if request.param == "fp8":
        set_precision(exact, "fp8")
    return load_engines(root / "engines", STEPS, device="cuda:0"), TOLERANCE[request.param], exact


def example(model, step: str, batch: int, pages: int, seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return draw_inputs(
        step_specs(model, batch, pages, PAGE_TOKENS)[step],
        rng,
        PAGE_TOKENS,
        page_table=lambda shape: np.stack([rng.permutation(2 * pages - 1)[:pages] + 1 for _ in range(batch)]),
        ids=lambda shape: rng.integers(0, 300, shape),
        block_mask=lambda shape: (rng.random(shape) < 0.8) | np.eye(shape[1], dtype=bool),
        tau=lambda shape: rng.uniform(0.3, 1.0, shape).astype(np.float32),
    )


def oracle(model, step: str, inputs: Arrays) -> Arrays:
    return reference(step_specs(model, 1, 1, PAGE_TOKENS)[step], inputs)


@pytest.mark.parametrize("step", STEPS)
def test_every_step_equals_the_oracle(model, engines, step):
    engine_set, tolerance, exact = engines
    for batch, pages in ((1, 3), (3, PAGES), (1, 3)):  # the first shape again: its graph is replayed
        inputs = example(model, step, batch, pages, seed=batch)
        out, expected = engine_set[step].run(inputs), oracle(exact, step, inputs)
        for name, want in expected.items():
            error = np.linalg.norm(out[name].astype(float) - want) / np.linalg.norm(want.astype(float))
            assert error < tolerance, (name, batch, pages)


def test_a_call_is_one_graph_launch(model, engines):
    engine_set, _, _ = engines
    inputs = example(model, "perform", 2, PAGES, seed=5)
    device = {name: torch.from_numpy(inputs[name]).cuda() for name in ("k_pool", "v_pool")}
    engine = engine_set["perform"]
    dtype = engine.backbone.weights.dtype  # type: ignore[attr-defined]
    inputs |= {name: pool.to(dtype) for name, pool in device.items()}
    engine.run(inputs)
    with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as profile:
        engine.run(inputs)
    names = [event.key for event in profile.key_averages() for _ in range(event.count)]
    assert names.count("cudaGraphLaunch") == 1
    assert not any("LaunchKernel" in name or "cuLaunch" in name for name in names)


def test_another_process_reads_the_pool():
    """CUDA IPC: what one process writes, another finds under the pool's name."""
    config, name = config_of("tiny"), f"wst-test-{os.getpid()}-ipc"
    b, cuda = config.backbone, CudaRuntime()
    k = np.random.default_rng(0).standard_normal((b.layers, 4, b.kv_heads, b.head_dim), dtype=np.float32)
    program = """
import sys, torch
from dataclasses import replace
from engine_builder.presets import preset
from triton_models.gpu.cuda.cuda_runtime import CudaRuntime
from triton_models.gpu.cuda.device_pool import DevicePool
config = preset("tiny")
config = replace(config, backbone=replace(config.backbone, layers=2))
pool = DevicePool.open(sys.argv[1], config, CudaRuntime())
print(float(torch.as_tensor(pool.k, device="cuda")[:, 3, :4].double().sum()))
pool.close()
"""
    with DevicePool.create(config, 8, PAGE_TOKENS, "float32", cuda, name) as pool:
        pool.write([Span(3, 0, 4)], k, -k, np.arange(4))
        done = subprocess.run([sys.executable, "-c", program, name], capture_output=True, text=True, check=True)
        assert float(done.stdout) == pytest.approx(k.astype(float).sum(), abs=1e-3)
        pool.scrub([3])
        assert not torch.as_tensor(pool.k, device="cuda").any()


def test_bfloat16_pools_are_tensors_without_a_copy():
    config, name = config_of("tiny"), f"wst-test-{os.getpid()}-view"
    with DevicePool.create(config, 4, PAGE_TOKENS, "bfloat16", CudaRuntime(), name) as pool:
        bits = torch.as_tensor(pool.v, device="cuda")
        assert bits.data_ptr() == pool.v.pointer
        assert bits.view(torch.bfloat16).shape == pool.v.shape
