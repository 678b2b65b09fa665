"""The TensorRT executor over stand-ins for TensorRT and CUDA, and the real libraries' names against what it uses."""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

import fake_cuda
import fake_tensorrt as trt
import numpy as np
import pytest
from plan_engines import entry_of, plan_engine
from step_oracle import draw_inputs, reference

from engine_builder.build import BuildOptions, build_engines
from engine_builder.checkpoint import random_model, save_checkpoint
from engine_builder.manifest import Manifest
from engine_builder.model.steps import step_specs
from engine_builder.presets import preset
from engine_builder.targets.tensorrt import plan_specs
from triton_models.gpu.cuda.buckets import Limits
from triton_models.gpu.cuda.cuda_runtime import CudaRuntime, DeviceArray
from triton_models.gpu.cuda.device_pool import DevicePool
from triton_models.gpu.tensorrt import runtime_cache
from triton_models.gpu.tensorrt.engine import PlanEngine, load_engines
from triton_models.gpu.tensorrt.probe import probe
from triton_models.gpu.tensorrt.runtime_cache import CacheFile, place_of
from triton_models.runtime.engines.engine import EngineError
from triton_models.runtime.kv.pages import Span

pytestmark = pytest.mark.engine
POOL_PAGES, PAGE_TOKENS = 6, 8
LIMITS = Limits(max_batch=4, max_pages=3)


@pytest.fixture(scope="module")
def model():
    tiny = preset("tiny")
    backbone = replace(tiny.backbone, hidden_size=48, layers=2, heads=4, kv_heads=2, head_dim=16, intermediate_size=80)
    return random_model(replace(tiny, backbone=backbone), 0)


@pytest.fixture
def cuda():
    trt.CUDA[:] = [fake_cuda.FakeCuda()]
    return CudaRuntime(api=trt.CUDA[0])


def engine_of(model, step, cuda, limits=LIMITS, cache=None) -> Any:
    return plan_engine(model, step, cuda, limits, (POOL_PAGES, PAGE_TOKENS), cache)


def example(model, step, batch, pages=2):
    """Seeded inputs of `batch` rows, and the outputs of the step function for them."""
    rng, spec = np.random.default_rng(batch), plan_specs(model, batch, pages, PAGE_TOKENS)[step]

    def pool(shape):
        return rng.standard_normal((shape[0], POOL_PAGES, *shape[2:]), dtype=np.float32)

    inputs = draw_inputs(
        spec,
        rng,
        PAGE_TOKENS,
        page_table=lambda shape: rng.integers(1, POOL_PAGES, shape),
        block_mask=lambda shape: np.ones(shape, dtype=bool),
        k_pool=pool,
        v_pool=pool,
    )
    return inputs, reference(spec, inputs)


def host(array: DeviceArray) -> np.ndarray:
    data = ctypes.string_at(array.pointer, int(np.prod(array.shape)) * 4)
    return np.frombuffer(data, dtype=np.float32).reshape(array.shape)


@pytest.mark.parametrize("step", ["perceive", "think", "perform", "render"])
def test_rows_and_pages_are_rounded_up_and_results_are_not(model, cuda, step):
    engine = engine_of(model, step, cuda)
    inputs, expected = example(model, step, batch=3)  # a bucket of 4 rows, 3 pages
    for _ in range(2):
        out = engine.run(inputs)
        for name, want in expected.items():
            got = host(out[name])[:, :3] if name in ("k_new", "v_new") else out[name]
            np.testing.assert_allclose(got.astype(float), want.astype(float), atol=1e-4, rtol=1e-4)
    if step == "think":
        assert out["finite"].tolist() == [True] * 3
    assert cuda.api.calls.count("cudaGraphInstantiate") == 1
    assert cuda.api.calls.count("cudaGraphLaunch") == 2  # one launch a call, copies included
    engine.close()
    assert cuda.api.used() == 0
    assert not cuda.api.pinned
    assert not cuda.api.graphs


def test_slots_and_prompts_take_their_own_profiles(model, cuda):
    engine = engine_of(model, "think", cuda)
    spec = step_specs(model, 1, 2, PAGE_TOKENS)["think"]
    inputs, _ = example(model, "think", batch=2)
    for rows, tokens in ((2, 1), (1, 6)):
        half = model.config.backbone.head_dim // 2
        few = {n: v if "pool" in n else v[:rows] for n, v in inputs.items()}
        few |= {n: few[n][:, :0] for n in ("z_video", "z_audio", "e_video", "e_audio")}
        few["ids"] = np.arange(rows * tokens).reshape(rows, tokens)
        few |= {n: np.ones((rows, tokens, half), np.float32) for n in ("rope_cos", "rope_sin")}
        few["block_mask"] = np.broadcast_to(np.tri(tokens, dtype=bool), (rows, tokens, tokens)).copy()
        out, expected = engine.run(few), reference(spec, few)
        np.testing.assert_allclose(out["logits"], expected["logits"], atol=1e-4)
        np.testing.assert_allclose(host(out["v_new"]), expected["v_new"], atol=1e-4)


def test_pools_are_read_in_place_and_new_kv_goes_into_them(model, cuda):
    """perform, then think, then perform again over what think committed: nothing but the pool carries it."""
    config, name = model.config, f"wst-test-{os.getpid()}-trt"
    with DevicePool.create(config, POOL_PAGES, PAGE_TOKENS, "float32", cuda, name) as pool:
        think, perform = engine_of(model, "think", cuda), engine_of(model, "perform", cuda)
        inputs, _ = example(model, "think", batch=1)
        out = think.run({**inputs, "k_pool": pool.k, "v_pool": pool.v})
        tokens = np.arange(8)
        pool.write([Span(2, 0, 8)], out["k_new"][:, 0], out["v_new"][:, 0], tokens)
        inputs, _ = example(model, "perform", batch=1)
        inputs["page_table"][...] = 2
        inputs["page_range"][...] = [[[0, 8], [0, 0]]]
        copies = {n: host(array).copy() for n, array in (("k_pool", pool.k), ("v_pool", pool.v))}
        assert copies["k_pool"][:, 2].any()
        expected = reference(plan_specs(model, 1, 2, PAGE_TOKENS)["perform"], {**inputs, **copies})
        got = perform.run({**inputs, "k_pool": pool.k, "v_pool": pool.v})
        np.testing.assert_allclose(got["velocity_video"], expected["velocity_video"], atol=1e-4)
        with pytest.raises(EngineError, match="k_pool: expected float32, got bfloat16"):
            perform.run({**inputs, "k_pool": replace(pool.k, dtype="bfloat16"), "v_pool": pool.v})


def test_rows_that_are_not_finite_are_reported(model, cuda):
    engine = engine_of(model, "think", cuda)
    inputs, _ = example(model, "think", batch=2)
    inputs["z_video"][1, 0, 0] = np.nan
    assert engine.run(inputs)["finite"].tolist() == [True, False]


def test_few_shapes_are_kept(model, cuda):
    engine = engine_of(model, "think", cuda)
    inputs, _ = example(model, "think", batch=1)
    half = model.config.backbone.head_dim // 2
    few = {**inputs, **{n: inputs[n][:, :0] for n in ("z_video", "z_audio", "e_video", "e_audio")}}
    for tokens in range(1, engine.max_calls + 4):
        few["ids"] = np.ones((1, tokens), np.int64)
        few |= {n: np.ones((1, tokens, half), np.float32) for n in ("rope_cos", "rope_sin")}
        few["block_mask"] = np.tri(tokens, dtype=bool)[None]
        engine.run(few)
    assert len(cuda.api.graphs) == engine.max_calls


@pytest.fixture
def rtx(monkeypatch):
    kinds = Enum("DynamicShapesKernelSpecializationStrategy", "LAZY EAGER NONE")
    monkeypatch.setattr(trt, kinds.__name__, kinds, raising=False)
    return kinds


def test_rtx_compiles_before_the_graph_is_captured(model, cuda, rtx):
    kinds = rtx
    engine = engine_of(model, "perform", cuda)
    inputs, expected = example(model, "perform", batch=1)
    np.testing.assert_allclose(engine.run(inputs)["velocity_audio"], expected["velocity_audio"], atol=1e-5)
    settings = engine._engine.settings
    assert settings.dynamic_shapes_kernel_specialization_strategy is kinds.EAGER
    assert settings.strategy is trt.ExecutionContextAllocationStrategy.USER_MANAGED
    assert settings.cache.kernels == 1


def test_what_rtx_compiled_is_there_at_the_next_start(model, cuda, rtx, tmp_path, caplog):
    file = CacheFile(tmp_path / "new" / "perform.plan.cache")
    inputs, _ = example(model, "perform", batch=1)
    for known in (0, 1, 1):
        engine = engine_of(model, "perform", cuda, cache=file)
        assert engine._compiled.kernels == known
        if not known:
            engine.run(inputs)
            engine.keep_compiled()
    assert file.path.read_bytes() == b"kernels:1"
    assert file.path.stat().st_mode & 0o077 == 0
    written = file.path.stat().st_mtime_ns
    engine.keep_compiled()
    assert file.path.stat().st_mtime_ns == written, "nothing new: nothing is written"
    assert not caplog.records


@pytest.mark.parametrize(
    ("content", "most", "message"),
    [
        (b"kernels of another GPU", 100, "expected kernels for this GPU and library"),
        (b"kernels:7" + bytes(100), 100, "expected at most 100 bytes, got 109"),
        (None, 100, "not used"),
    ],
)
def test_a_runtime_cache_that_is_damaged_is_ignored_and_replaced(
    model, cuda, rtx, tmp_path, caplog, monkeypatch, content, most, message
):
    monkeypatch.setattr(runtime_cache, "MOST_BYTES", most)
    path = tmp_path / "perform.plan.cache"
    path.mkdir() if content is None else path.write_bytes(content)
    engine = engine_of(model, "perform", cuda, cache=CacheFile(path))
    assert message in caplog.text
    assert engine._compiled.kernels == 0
    engine.run(example(model, "perform", batch=1)[0])
    engine.keep_compiled()
    assert path.is_dir() if content is None else path.read_bytes() == b"kernels:1"
    monkeypatch.setattr(runtime_cache, "MOST_BYTES", 3)
    engine.keep_compiled()
    assert "expected at most 3 bytes, got 9; not written" in caplog.text


def test_beside_signed_engines_no_code_is_trusted(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    engines = tmp_path / "engines"
    engines.mkdir()
    (engines / "manifest.json").write_text("{}")
    assert place_of(engines, None) == engines
    assert place_of(engines, tmp_path / "key").is_relative_to(tmp_path / "cache")


def test_enterprise_tensorrt_has_no_runtime_cache(model, cuda, tmp_path):
    engine = engine_of(model, "perform", cuda, cache=CacheFile(tmp_path / "file"))
    engine.run(example(model, "perform", batch=1)[0])
    engine.keep_compiled()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_video": None}, "perform: x_video: expected shape .* got nothing"),
        ({"x_video": np.zeros((1, 4, 47), np.float32)}, r"x_video: expected shape .*got \[1, 4, 47\]"),
        ({"x_video": np.zeros((2, 4, 64), np.float32)}, "x_audio: expected shape .* with {'batch': 2}"),
        ({"tau": np.zeros(1)}, r"perform: tau: expected float32 \[1\], got float64"),
        ({"k_pool": np.zeros((2, 5, 8, 2, 16), np.float32)}, "v_pool: expected shape"),
        ({n: np.zeros((2, 5, 8, 2, 16), np.float32) for n in ("k_pool", "v_pool")}, r"profile 0: k_pool \[2, 6, 8"),
    ],
)
def test_misfits_name_tensor_and_profile(model, cuda, change, message):
    inputs, _ = example(model, "perform", batch=1)
    inputs = {n: v for n, v in {**inputs, **change}.items() if v is not None}
    with pytest.raises(EngineError, match=message):
        engine_of(model, "perform", cuda).run(inputs)


def test_a_plan_that_is_not_the_manifests_is_refused(model, cuda):
    with pytest.raises(EngineError, match=r"render: fake_tensorrt 11\.4\.fake cannot load render\.plan"):
        PlanEngine("render", b"?", entry_of(step_specs(model)["render"]), LIMITS, trt, cuda)
    engine_of(model, "render", cuda)
    other = entry_of(step_specs(model)["perceive"])
    with pytest.raises(EngineError, match=r"is not what the manifest says: .*e_audio: expected float32, got None"):
        PlanEngine("render", b"render", other, LIMITS, trt, cuda)


def test_a_plan_is_probed_in_a_process_of_its_own(tmp_path):
    plan = tmp_path / "broken.plan"
    plan.write_bytes(b"not a plan")
    verdict = probe(plan, "tensorrt-rtx")
    assert not verdict.usable
    assert verdict.validity in ("INVALID", "CRASHED")
    assert "broken.plan" in verdict.text


def test_directories_of_other_targets_are_refused(tmp_path, model):
    save_checkpoint(model, tmp_path / "checkpoint")
    build_engines(tmp_path / "checkpoint", tmp_path / "engines", BuildOptions(target="torch-cuda"))
    with pytest.raises(EngineError, match="expected plans of tensorrt or tensorrt-rtx, got torch-cuda"):
        load_engines(tmp_path / "engines", ("render",))
    manifest = replace(Manifest.load(tmp_path / "engines"), target="tensorrt-rtx")
    manifest.save(tmp_path / "engines")
    with pytest.raises(EngineError, match=r"render: render\.safetensors: .*rebuild: python -m engine_builder build"):
        load_engines(tmp_path / "engines", ("render",))


# What builder and executor use of the library: name -> what its documentation must say of arguments and result.
USED = {
    "Builder.create_network": "flags",
    "Builder.create_builder_config": "IBuilderConfig",
    "Builder.create_optimization_profile": "IOptimizationProfile",
    "Builder.build_serialized_network": "network: .*config: .*-> .*IHostMemory",
    "OnnxParser.parse_from_file": r"model: str\) -> bool",
    "OnnxParser.get_error": "index",
    "OnnxParser.num_errors": "",
    "INetworkDefinition.num_inputs": "",
    "INetworkDefinition.num_layers": "",
    "INetworkDefinition.get_input": "index",
    "INetworkDefinition.get_layer": "index",
    "LayerType.ATTENTION_INPUT": "",
    "IAttentionInputLayer.attention": "",
    "IAttention.decomposable": "",
    "IOptimizationProfile.set_shape": "input: str, min: .*opt: .*max: ",
    "IBuilderConfig.add_optimization_profile": "profile",
    "IBuilderConfig.create_timing_cache": r"serialized_timing_cache: .*-> .*ITimingCache",
    "IBuilderConfig.set_timing_cache": r"ignore_mismatch: bool\) -> bool",
    "IBuilderConfig.get_timing_cache": "ITimingCache",
    "ITimingCache.serialize": "IHostMemory",
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": "",
    "Logger.ERROR": "",
    "Runtime.deserialize_cuda_engine": "ICudaEngine",
    "ICudaEngine.num_io_tensors": "",
    "ICudaEngine.num_optimization_profiles": "",
    "ICudaEngine.device_memory_size_v2": "",
    "ICudaEngine.get_tensor_name": r"index: .*\) -> str",
    "ICudaEngine.get_tensor_dtype": r"name: str\) -> .*DataType",
    "ICudaEngine.get_tensor_profile_shape": r"name: str, profile_index: .*\) -> .*Dims",
    "ICudaEngine.create_execution_context": "strategy: .*ExecutionContextAllocationStrategy",
    "ExecutionContextAllocationStrategy.USER_MANAGED": "",
    "IExecutionContext.set_device_memory": "memory: .*, size: ",
    "IExecutionContext.set_optimization_profile_async": r"profile_index: .*stream_handle: .*\) -> bool",
    "IExecutionContext.set_input_shape": r"name: str, shape: tuple\) -> bool",
    "IExecutionContext.infer_shapes": r"\) -> .*str",
    "IExecutionContext.get_tensor_shape": r"name: str\) -> .*Dims",
    "IExecutionContext.set_tensor_address": r"name: str, memory: .*\) -> bool",
    "IExecutionContext.execute_async_v3": r"stream_handle: .*\) -> bool",
    **{f"DataType.{name}": "" for name in ("FLOAT", "HALF", "BF16", "INT32", "INT64", "BOOL", "UINT8")},
}


# TensorRT-RTX alone builds for another GPU and says whether a plan fits this one.
USED_OF_RTX = {
    "IBuilderConfig.num_compute_capabilities": "",
    "IBuilderConfig.set_compute_capability": "",
    "ComputeCapability.SM89": "",
    "Runtime.get_engine_validity": "tuple",
    "EngineValidity.SUBOPTIMAL": "",
    "EngineInvalidityDiagnostics.UNSUPPORTED_CC": "",
    "ICudaEngine.create_runtime_config": "IRuntimeConfig",
    "IRuntimeConfig.set_execution_context_allocation_strategy": "strategy: .*ExecutionContextAllocationStrategy",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy": "",
    "IRuntimeConfig.create_runtime_cache": "IRuntimeCache",
    "IRuntimeConfig.set_runtime_cache": r"cache: .*\) -> bool",
    "IRuntimeCache.deserialize": r"blob: .*\) -> bool",
    "IRuntimeCache.serialize": "IHostMemory",
    "DynamicShapesKernelSpecializationStrategy.EAGER": "",
}


def check_documentation(used: dict[str, str], docs: dict[str, str]) -> None:
    for name, expected in used.items():
        assert re.search(expected, docs[name]), f"{name}: expected {expected!r} in {docs[name]!r}"


def test_enterprise_bindings_have_what_we_use(tmp_path):
    """The real wheel of the production target, whose libraries cannot be had from a public index."""
    script = Path(__file__).parents[3] / "engine_builder" / "enterprise_bindings.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        input=json.dumps(list(USED)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["version"].startswith("11.")
    assert report["missing"] == []
    check_documentation(USED, report["doc"])


def test_rtx_bindings_have_what_we_use():
    real = pytest.importorskip("tensorrt_rtx")
    used, docs = {**USED, **USED_OF_RTX}, {}
    for name in used:
        value = real
        for part in name.split("."):
            value = getattr(value, part)
        docs[name] = " ".join((value.__doc__ or "").split())
    check_documentation(used, docs)
