"""The serving runtime on GPU engines: conversations as with the model itself, K and V that never leave the device."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import fake_cuda
import numpy as np
import pytest
import torch

from engine_builder.build import BuildOptions, build_engines
from engine_builder.checkpoint import load_checkpoint, random_model, save_checkpoint
from engine_builder.manifest import Manifest
from engine_builder.model.steps import step_specs
from engine_builder.presets import preset
from triton_models import measure
from triton_models.gpu import serving
from triton_models.gpu.cuda.cuda_runtime import CudaRuntime, DeviceArray
from triton_models.gpu.cuda.device_pool import DevicePool
from triton_models.gpu.rehearsal import rehearse
from triton_models.gpu.torch_cuda import weights
from triton_models.gpu.torch_cuda.steps import tensor_of
from triton_models.gpu.torch_cuda.weights import read_tensors
from triton_models.runtime.budget import probe as cost_probe
from triton_models.runtime.engines.devices import Devices
from triton_models.runtime.engines.engine import PERFORMER_STEPS, THINKER_STEPS, EngineError, EngineSet
from triton_models.runtime.engines.target import HostTarget
from triton_models.runtime.kv.pages import Span
from triton_models.service.load import load_engines
from triton_models.service.local import AgentUnit, LocalRuntime, UserUnit
from triton_models.service.settings import StageSettings
from triton_models.service.stage import Stage

pytestmark = pytest.mark.engine
PAGES, PAGE_TOKENS = 8, 16


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
    return replace(engines, engines={step: ModelStep(spec) for step, spec in specs.items()}, target=HostTarget())


def user_unit(engines: EngineSet, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    audio, video = engines.config.audio, engines.config.video
    pcm = rng.standard_normal(audio.unit_samples, dtype=np.float32) * np.float32(0.1)
    return pcm, rng.integers(0, 256, (4, video.height, video.width, 3), dtype=np.uint8)


def converse(engines: EngineSet) -> list[AgentUnit]:
    """Two sessions side by side, two units each; one has a prompt, the other types."""

    async def talk(runtime: LocalRuntime, seed: int, **options: object) -> list[AgentUnit]:
        rng = np.random.default_rng(seed)
        session = await runtime.open(seed=seed, **options)  # type: ignore[arg-type]
        return [await session.step(*user_unit(engines, rng), text="hi" if unit else "") for unit in range(2)]

    async def both(runtime: LocalRuntime) -> list[AgentUnit]:
        talks = talk(runtime, 1, prompt="be kind"), talk(runtime, 2)
        return [unit for units in await asyncio.gather(*talks) for unit in units]

    with LocalRuntime(engines, pages=64, page_tokens=PAGE_TOKENS) as runtime:
        return asyncio.run(both(runtime))


def test_conversations_are_those_of_the_model(directories):
    engines = load_engines(directories / "torch-cuda", (*THINKER_STEPS, *PERFORMER_STEPS), device="cpu")
    got = converse(engines)
    expected = converse(the_model_itself(directories / "checkpoint", engines))
    assert len(got) == 4
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.slots == theirs.slots
        for name in ("z_video", "z_audio", "pcm"):
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=2e-4, rtol=1e-3)
        assert np.abs(ours.frames.astype(int) - theirs.frames).max() <= 1


def test_a_stage_holds_the_weights_once(directories, monkeypatch):
    """Two processes would hold two copies of them on a GPU."""
    tables = []

    def counted(path, device):
        tensors = read_tensors(path, device)
        tables.append(tensors["embed"])
        return tensors

    monkeypatch.setattr(weights, "read_tensors", counted)
    settings = StageSettings(
        engines=str(directories / "torch-cuda"),
        role="both",
        link="",
        pages=64,
        page_tokens=PAGE_TOKENS,
        max_sessions=2,
        threads=1,
        degrade=False,
        orphan_seconds=60.0,
        device="cpu",
    )
    Stage.of(settings, bytes(32)).stop()
    assert len(tables) == 1
    engines = load_engines(directories / "torch-cuda", (*THINKER_STEPS, *PERFORMER_STEPS), device="cpu")
    assert len(tables) == 2, "once for each loading, whatever the number of steps"
    embed = {engines[step].backbone.weights.tensors["embed"].data_ptr() for step in ("think", "perform")}
    assert embed == {tables[1].data_ptr()}


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
    with DevicePool.create(manifest.model, PAGES, PAGE_TOKENS, "float32", cuda, name) as pool:
        reader = DevicePool.open(name, manifest.model, CudaRuntime(api=cuda.api))
        out = engines["think"].run({**inputs, "k_pool": reader.k, "v_pool": reader.v})
        assert out["finite"].tolist() == [True]
        assert isinstance(out["k_new"], DeviceArray)
        assert out["state_token"] == max(manifest.model.language.state_ids, key=expected["logits"][0].item)
        pool.write([Span(3, 1, tokens)], out["k_new"][:, 0], out["v_new"][:, 0], np.arange(tokens))
        for array, new in ((reader.k, "k_new"), (reader.v, "v_new")):
            written = tensor(array)[:, 3, 1 : 1 + tokens]
            np.testing.assert_allclose(written, expected[new][:, 0], atol=1e-5)
        reader.close()


def tensor(array: DeviceArray) -> np.ndarray:
    return tensor_of(array, torch.device("cpu")).numpy()


def test_the_rehearsal_meets_every_size(directories):
    """After it no call of the serving runtime makes a graph, and the pool is as it was."""
    engines = load_engines(directories / "torch-cuda", (*THINKER_STEPS, *PERFORMER_STEPS), device="cpu")
    with LocalRuntime(engines, pages=64, page_tokens=PAGE_TOKENS) as runtime:
        solver = engines.target.solver(engines["perform"], runtime.pool, 4)
        rehearse(engines, runtime.pool, solver)
        think, perceive = engines["think"], engines["perceive"]
        assert {(key[0], key[1], key[6][-1]) for key in think._calls} == {(r, 64, i) for r in (1, 2) for i in (1, 5)}
        assert set(perceive.kept._calls) == {1, 2}
        assert set(solver._ticks) == {(1, 64), (2, 64)}
        assert not tensor(runtime.pool.k).any()
        made = (dict(think._calls), dict(perceive.kept._calls))
        talk = runtime.converse([UserUnit(*user_unit(engines, np.random.default_rng(0)))] * 2, prompt="be kind")
        assert len(talk) == 2
        assert made == (think._calls, perceive.kept._calls)


def test_engines_outlive_a_pool(directories):
    """The next pool, of another size, may lie where the last one lay."""
    engines = load_engines(directories / "torch-cuda", (*THINKER_STEPS, *PERFORMER_STEPS), device="cpu")
    talks = []
    for pages in (64, 96, 64):
        with LocalRuntime(engines, pages=pages, page_tokens=PAGE_TOKENS) as runtime:
            unit = UserUnit(*user_unit(engines, np.random.default_rng(0)))
            talks.append(runtime.converse([unit, unit]))
    for other in talks[1:]:
        for a, b in zip(talks[0], other, strict=True):
            np.testing.assert_allclose(a.pcm, b.pcm, atol=1e-6)


@pytest.mark.parametrize("device", ["cpu", "cpu,cpu,cpu"])
def test_costs_are_measured_over_the_pools_that_serve(directories, monkeypatch, device):
    monkeypatch.setattr(cost_probe, "ROUNDS", 1)
    monkeypatch.setattr(cost_probe, "REPEATS", 1)
    directory = directories / "torch-cuda"
    assert measure.main(["--engines", str(directory), "--device", device]) == 0
    table = cost_probe.load_costs(directory, 1, device)
    assert table is not None
    assert table.steps == ("perceive", "perform", "render", "slot", "think")
    assert {(c.batch, c.history) for c in table.costs if c.step == "perform"} == {(1, 1024), (2, 1024)}
    assert all(c.ms > 0 for c in table.costs)
    assert cost_probe.load_costs(directory, 1) is None  # those of a GPU are others
    assert cost_probe.load_costs(directory, 1, "cpu,cpu,cpu" if device == "cpu" else "cpu") is None
    assert cost_probe._rounded_batches(6) == [1, 2, 3, 4, 5, 6]
    assert cost_probe._rounded_batches(16) == [1, 2, 3, 4, 5, 8, 9, 16]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU says")
@pytest.mark.parametrize(
    ("target", "device", "message"),
    [
        ("torch-cuda", "", "expected NVIDIA GPU 0, found none"),
        ("torch-cuda", "1", "expected NVIDIA GPU 1, found none"),
        ("tensorrt-rtx", "cpu", "expected a GPU, got device cpu"),
        ("tensorrt", "", "expected the package tensorrt, got none; NVIDIA's container has it"),
        ("tensorrt", "0,1,2", "expected one device for the performer, got 2; torch-cuda takes more"),
        ("torch-cuda", "cpu,cpu,cpu,cpu", "expected 1, 2 for the performer, as its 2 KV heads are dealt out, got 3"),
    ],
)
def test_what_is_missing_is_named_before_anything_is_loaded(directories, tmp_path, target, device, message, capsys):
    directory = shutil.copytree(directories / "torch-cuda", tmp_path / "engines")
    replace(Manifest.load(directory), target=target).save(directory)
    with pytest.raises(EngineError, match=message):
        load_engines(directory, PERFORMER_STEPS, device=device)
    arguments = ["--engines", str(directory), "--runs", str(tmp_path), "--device", device]
    from triton_models import launch  # here: a bare GPU machine has none of the launcher's packages

    assert launch.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_tensorrt_needs_no_torch():
    code = (
        "import sys; import triton_models.launch, triton_models.gpu.rehearsal, triton_models.gpu.tensorrt.engine; "
        "print([name for name in sys.modules if name.partition('.')[0] in ('torch', 'triton')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


def test_devices():
    assert Devices.parse("") == Devices("0", "0", False)
    assert Devices.parse("2").gpus == [2]
    assert Devices.parse("1,0") == Devices("1", "0", True)
    assert not Devices.parse("1,1").apart
    assert Devices.parse("cpu,cpu").apart
    assert Devices.parse("cpu").gpus == []
    assert Devices.parse("2,0,1") == Devices("2", "0", True, ("1",))
    assert Devices.parse("2,0,1").gpus == [0, 1, 2]
    assert Devices.parse("cpu,cpu,cpu").describe() == "Triton's interpreter, a performer of 2 ranks"
    for bad in ("gpu", "0,", "0,cpu", "-1", "0,0,1", "0,1,1"):
        with pytest.raises(ValueError, match="device: expected"):
            Devices.parse(bad)


def test_the_pool_of_a_plan_cannot_be_resized(directories):
    manifest = replace(Manifest.load(directories / "torch-cuda"), target="tensorrt-rtx")
    from triton_models.launcher import checks

    with pytest.raises(checks.LaunchError, match="--pages 7: these plans were built for a pool of 2048 pages"):
        checks.check_pool(manifest, 7, "")
    torch_pool = checks.check_pool(replace(manifest, target="torch-cuda", precision="bfloat16"), 7, "")
    assert torch_pool == 2 * 1 * 7 * 16 * 2 * 16 * 2  # k and v, layers, pages, page, heads, size, bytes


def test_engines_for_a_cpu_are_refused(directories, tmp_path):
    replace(Manifest.load(directories / "torch-cuda"), target="onnxruntime").save(tmp_path)
    with pytest.raises(EngineError, match="expected engines of tensorrt, tensorrt-rtx, torch-cuda, got onnxruntime"):
        serving.load_engines(tmp_path, ("perform",))
