"""The serving runtime on GPU engines: conversations as with the model itself, K and V that never leave the device."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine_builder.build import BuildOptions, build_engines
from engine_builder.checkpoint import load_checkpoint, random_model, save_checkpoint
from engine_builder.config import preset
from engine_builder.manifest import Manifest
from engine_builder.model.steps import step_specs
from triton_models.gpu import serving
from triton_models.gpu.cuda_runtime import CudaRuntime, DeviceArray
from triton_models.gpu.device_pool import DevicePool
from triton_models.gpu.torch_engine import tensor_of
from triton_models.runtime.engine import PERFORMER_STEPS, THINKER_STEPS, EngineError, EngineSet
from triton_models.runtime.kv_cache import Span
from triton_models.runtime.link import HostLink
from triton_models.runtime.local import AgentUnit, LocalRuntime

pytestmark = pytest.mark.engine
PAGES, PAGE_TOKENS = 8, 16
_spec = importlib.util.spec_from_file_location("fake_cuda", Path(__file__).with_name("fake_cuda.py"))
assert _spec is not None
assert _spec.loader is not None
fake_cuda = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fake_cuda)


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    tiny = preset("tiny")
    backbone = replace(tiny.backbone, hidden_size=48, layers=1, heads=4, kv_heads=2, head_dim=16, intermediate_size=80)
    model = random_model(replace(tiny, backbone=backbone, solver=replace(tiny.solver, steps=2)), 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "codec" not in name and parameter.dim() > 1:  # so that units, and their slots, differ
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    root = tmp_path_factory.mktemp("serving")
    save_checkpoint(model, root / "checkpoint")
    options = BuildOptions(target="torch-cuda", precision="float32", max_batch=2, max_pages=64)
    build_engines(root / "checkpoint", root / "torch-cuda", options)
    return root


class ModelStep:
    """A step function of the model as an engine."""

    def __init__(self, spec) -> None:
        self.spec = spec

    def run(self, inputs):
        with torch.no_grad():
            results = self.spec.module(**{name: torch.from_numpy(value) for name, value in inputs.items()})
        return {name: t.numpy() for name, t in zip(self.spec.outputs, results, strict=True)}


def the_model_itself(directory: Path, engines: EngineSet) -> EngineSet:
    """The engines of a checkpoint as its own step functions, with everything else as in `engines`."""
    specs = step_specs(load_checkpoint(directory))
    return replace(engines, engines={step: ModelStep(spec) for step, spec in specs.items()}, link=HostLink())


def converse(engines: EngineSet) -> list[AgentUnit]:
    """Two sessions side by side, two units each; one has a prompt, the other types."""
    audio, video = engines.config.audio, engines.config.video

    async def talk(runtime: LocalRuntime, seed: int, **options: object) -> list[AgentUnit]:
        rng = np.random.default_rng(seed)
        session = await runtime.open(seed=seed, **options)  # type: ignore[arg-type]
        units = []
        for unit in range(2):
            pcm = rng.standard_normal(audio.unit_samples, dtype=np.float32) * np.float32(0.1)
            frames = rng.integers(0, 256, (4, video.height, video.width, 3), dtype=np.uint8)
            units.append(await session.step(pcm, frames, text="hi" if unit else ""))
        return units

    async def both(runtime: LocalRuntime) -> list[AgentUnit]:
        talks = talk(runtime, 1, prompt="be kind"), talk(runtime, 2)
        return [unit for units in await asyncio.gather(*talks) for unit in units]

    with LocalRuntime(engines, pages=64, page_tokens=PAGE_TOKENS) as runtime:
        return asyncio.run(both(runtime))


def test_conversations_are_those_of_the_model(directories):
    engines = EngineSet.load(directories / "torch-cuda", (*THINKER_STEPS, *PERFORMER_STEPS), device="cpu")
    got = converse(engines)
    expected = converse(the_model_itself(directories / "checkpoint", engines))
    assert len(got) == 4
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.slots == theirs.slots
        for name in ("z_video", "z_audio", "pcm"):
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=2e-4, rtol=1e-3)
        assert np.abs(ours.frames.astype(int) - theirs.frames).max() <= 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="host memory plays the device's part")
def test_new_kv_goes_from_engine_to_pool_on_the_device(directories):
    engines = serving.load_engines(directories / "torch-cuda", ("think",), "cpu")
    manifest, cuda = Manifest.load(directories / "torch-cuda"), CudaRuntime(api=fake_cuda.FakeCuda())
    checkpoint = random_model(manifest.model, 0)
    spec = step_specs(checkpoint, batch=1, pages=2, page_tokens=PAGE_TOKENS)["think"]
    rng = np.random.default_rng(3)
    inputs = {
        name: rng.standard_normal(tuple(t.shape), dtype=np.float32) if t.dtype == torch.float32 else t.numpy()
        for name, t in spec.inputs.items()
        if "pool" not in name
    }
    tokens, name = manifest.model.block_tokens, f"wst-test-{os.getpid()}-serving"
    shape = (manifest.model.backbone.layers, PAGES, PAGE_TOKENS, 2, 16)
    empty = {pool: np.zeros(shape, dtype=np.float32) for pool in ("k_pool", "v_pool")}
    expected = engines["think"].run({**inputs, **empty})
    with DevicePool.create(name, manifest.model, PAGES, PAGE_TOKENS, "float32", cuda) as pool:
        reader = DevicePool.open(name, manifest.model, CudaRuntime(api=cuda.api))
        out = engines["think"].run({**inputs, "k_pool": reader.k, "v_pool": reader.v})
        assert out["finite"].tolist() == [True]
        assert isinstance(out["k_new"], DeviceArray)
        np.testing.assert_allclose(out["logits"], expected["logits"], atol=1e-5)
        pool.write([Span(3, 1, tokens)], out["k_new"][:, 0], out["v_new"][:, 0], np.arange(tokens))
        for array, new in ((reader.k, "k_new"), (reader.v, "v_new")):
            written = tensor(array)[:, 3, 1 : 1 + tokens]
            np.testing.assert_allclose(written, expected[new][:, 0], atol=1e-5)
        reader.close()


def tensor(array: DeviceArray) -> np.ndarray:
    return tensor_of(array, torch.device("cpu")).numpy()


def test_engines_for_a_cpu_are_refused(directories, tmp_path):
    replace(Manifest.load(directories / "torch-cuda"), target="onnxruntime").save(tmp_path)
    with pytest.raises(EngineError, match="expected engines of tensorrt, tensorrt-rtx, torch-cuda, got onnxruntime"):
        serving.load_engines(tmp_path, ("perform",))
