"""The torch-cuda engines, built and loaded for real, against the step functions that every target is exported from."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from step_oracle import Arrays, draw_inputs, reference

from engine_builder.build import BuildOptions, build_engines, verify_engines
from engine_builder.checkpoint import load_checkpoint, random_model, save_checkpoint, save_seed
from engine_builder.config import ModelConfig
from engine_builder.manifest import STEPS, ManifestError
from engine_builder.model.duplex import DuplexModel
from engine_builder.model.steps import step_specs
from engine_builder.presets import preset
from engine_builder.targets.precision import Fp8Linear, cast_linears, set_precision
from engine_builder.targets.torch_cuda import FP8_MATRICES, pack_backbone, pack_matrix
from triton_models.gpu.cuda.buckets import Limits
from triton_models.gpu.cuda.staging import HostBlock, Layout, Slot
from triton_models.gpu.torch_cuda.backbone import Backbone
from triton_models.gpu.torch_cuda.captured import Lane
from triton_models.gpu.torch_cuda.engine import load_engines
from triton_models.gpu.torch_cuda.steps import PerformEngine, ThinkEngine, device_array, tensor_of
from triton_models.gpu.torch_cuda.weights import BackboneWeights, WeightsError, expected_shapes
from triton_models.runtime.engines.engine import EngineError
from triton_models.runtime.thinker.choice import Choice

pytestmark = pytest.mark.engine
PAGES, PAGE_TOKENS = 3, 8
CPU = torch.device("cpu")


def small_config() -> ModelConfig:
    """`tiny` in all modalities, with a backbone that the interpreter runs in a moment."""
    tiny = preset("tiny")
    backbone = replace(
        tiny.backbone, hidden_size=48, layers=2, heads=4, kv_heads=2, head_dim=16, intermediate_size=80, tied_head=False
    )
    return replace(tiny, backbone=backbone, language=replace(tiny.language, state_bias=(0.0, -2.5)))


@pytest.fixture(scope="module")
def model() -> DuplexModel:
    model = random_model(small_config(), 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "codec" not in name and parameter.dim() > 1:  # weights large enough for every term to matter
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def directories(model, tmp_path_factory):
    root = tmp_path_factory.mktemp("torch-cuda")
    save_checkpoint(model, root / "checkpoint")
    for precision in ("float32", "bfloat16"):
        options = BuildOptions(target="torch-cuda", precision=precision, max_batch=4, max_pages=4)
        build_engines(root / "checkpoint", root / precision, options)
    return root


@pytest.fixture(scope="module")
def engines(directories):
    return load_engines(directories / "float32", STEPS, device="cpu")


def test_a_backbone_that_is_a_seed_is_drawn_where_it_is_loaded(tmp_path):
    """Nothing of the size of a large preset is drawn, written, hashed or read on the host."""
    config = small_config()
    save_seed(config, 7, tmp_path / "checkpoint", "random (seed 7)")
    undrawn = load_checkpoint(tmp_path / "checkpoint", seeded_backbone=False)
    assert {name.split(".")[0] for name, p in undrawn.named_parameters() if not p.is_meta} == {
        f"{stream}_{part}" for stream in ("audio", "video") for part in ("encoder", "codec")
    }
    options = BuildOptions(target="torch-cuda", max_batch=2, max_pages=4)
    build_engines(tmp_path / "checkpoint", tmp_path / "engines", options)
    assert (tmp_path / "engines/backbone.safetensors").stat().st_size < 200
    first, again = (
        load_engines(tmp_path / "engines", ("think", "perform"), device="cpu")["think"].backbone.weights for _ in "ab"
    )
    assert all(torch.equal(first[name], again[name]) for name in first.tensors)
    assert first.dtype == torch.bfloat16
    drawn = random_model(config, 7)  # other numbers, from the same distributions
    packed = pack_backbone(drawn, "bfloat16")
    for name, tensor in first.tensors.items():
        assert tensor.float().std() == pytest.approx(float(packed[name].float().std()), rel=0.3, abs=1e-2), name
    torch.testing.assert_close(first["tau.frequency"], packed["tau.frequency"])
    assert first["video_in.bias"].any() == packed["video_in.bias"].any()


def example(model: DuplexModel, step: str, batch: int, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return draw_inputs(
        step_specs(model, batch, PAGES, PAGE_TOKENS)[step],
        rng,
        PAGE_TOKENS,
        scale=0.5,
        page_table=lambda shape: np.stack([rng.permutation(5)[:PAGES] + 1 for _ in range(batch)]),
        block_mask=lambda shape: (rng.random(shape) < 0.6) | np.eye(shape[1], dtype=bool),
        tau=lambda shape: rng.uniform(0.2, 1.0, shape).astype(np.float32),
    )


def oracle(model: DuplexModel, step: str, inputs: Arrays) -> Arrays:
    return reference(step_specs(model, 1, PAGES, PAGE_TOKENS)[step], inputs)


def slot_pass(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The think inputs of a slot: one id and nothing else."""
    short = {name: inputs[name][:, :0] for name in ("z_video", "z_audio", "e_video", "e_audio")}
    short |= {name: inputs[name][:, :1] for name in ("ids", "rope_cos", "rope_sin")}
    mask = np.ones((inputs["ids"].shape[0], 1, 1), dtype=bool)
    return {**inputs, **short, "block_mask": mask}


@pytest.mark.parametrize("step", STEPS)
def test_steps_equal_the_model(engines, model, step):
    inputs = example(model, step, batch=3)  # a bucket of 4 rows and 4 pages: one of each is empty
    out, expected = engines[step].run(inputs), oracle(model, step, inputs)
    assert set(out) == set(expected)
    for name, want in expected.items():
        tolerance = 1.0 if want.dtype == np.uint8 else 1e-5  # a pixel may round the other way
        np.testing.assert_allclose(out[name].astype(float), want.astype(float), atol=tolerance, rtol=1e-4)


def relative(got: Arrays, want: Arrays) -> dict[str, float]:
    """How far each result is from the wanted one, as a share of its norm."""
    return {name: float(np.linalg.norm(got[name] - want[name]) / np.linalg.norm(want[name])) for name in want}


@pytest.mark.parametrize("step", ["think", "perform"])
def test_fp8_products_equal_their_emulation(model, step):
    """With float32 between the products both sides round the same numbers: kernels and scales have no excuse."""
    packed = {name: tensor.detach() for name, tensor in pack_backbone(model, "float32").items()}
    for name in [name for name in packed if name.endswith(FP8_MATRICES)]:
        packed |= pack_matrix(name, packed[name], "fp8")
    backbone = Backbone(BackboneWeights(model.config, packed))
    kind = ThinkEngine if step == "think" else PerformEngine
    inputs = example(model, step, batch=2)
    got = kind(backbone, Limits(4, 4), Lane(CPU)).run(inputs)
    alike = copy.deepcopy(model)
    cast_linears(alike.model, torch.float32, Fp8Linear)
    assert max(relative(got, oracle(alike, step, inputs)).values()) < 1e-3


@pytest.mark.parametrize("step", ["think", "perform"])
def test_fp8_engines_equal_the_model_in_fp8(model, directories, step):
    """In bf16 no bound can be tight. Where two sides differ by a last bit (2^-8), a number falls on another side of a
    rounding to e4m3, whose steps are s = 2^-3.5 of it, in 2^-8 / s of all cases and is then off by s: by
    sqrt(2^-8 s) = 0.019 a product, half of what the rounding itself does. So they agree better than FP8 agrees with
    what is not rounded; that the products are right is shown above, how much the rounding costs by `make eval`."""
    options = BuildOptions(target="torch-cuda", precision="fp8", max_batch=4, max_pages=4)
    manifest = build_engines(directories / "checkpoint", directories / f"fp8-{step}", options)
    assert (manifest.precision, manifest.pool_precision) == ("fp8", "bfloat16")
    inputs = example(model, step, batch=2)
    alike = set_precision(copy.deepcopy(model), "fp8")
    got = load_engines(directories / f"fp8-{step}", (step,), device="cpu")[step].run(inputs)
    emulated, exact = oracle(alike, step, inputs), oracle(model, step, inputs)
    error, cost = relative(got, emulated), relative(emulated, exact)
    assert all(error[name] < cost[name] < 0.15 for name in cost), (error, cost)


def test_slot_and_prompt_passes_equal_the_model(engines, model):
    slot = slot_pass(example(model, "think", batch=2))
    rng = np.random.default_rng(4)
    rope = rng.standard_normal((1, 6, 8)).astype(np.float32)
    causal = np.tri(6, dtype=bool)[None]
    prompt = {
        **{name: value[:1] for name, value in slot.items() if "pool" not in name},
        **{name: slot[name] for name in ("k_pool", "v_pool")},
        "ids": rng.integers(0, 64, (1, 6)),
        "rope_cos": rope,
        "rope_sin": rope,
        "block_mask": causal,
    }
    for inputs in (slot, prompt):
        out, expected = engines["think"].run(inputs), oracle(model, "think", inputs)
        for name, want in expected.items():
            np.testing.assert_allclose(out[name], want, atol=1e-5, rtol=1e-4)


def test_batched_rows_equal_solo_rows(engines, model):
    inputs = example(model, "perform", batch=4)
    together = engines["perform"].run(inputs)
    for row in range(4):
        alone = {n: v if "pool" in n else v[row : row + 1] for n, v in inputs.items()}
        solo = engines["perform"].run(alone)
        for name, value in solo.items():
            np.testing.assert_allclose(value[0], together[name][row], atol=1e-5, rtol=1e-4)


def test_new_kv_stays_on_the_device(directories, model):
    """With a rehearsal on zeros first, as before a graph is captured; one row is not finite, a bucket of 4 has 3."""
    engines = load_engines(directories / "float32", ("think",), device="cpu", lane=Lane(CPU, warm_up=1))
    inputs = example(model, "think", batch=3)
    expected = oracle(model, "think", inputs)
    inputs["rope_cos"][1] = np.nan
    pools = {name: torch.from_numpy(inputs[name]) for name in ("k_pool", "v_pool")}
    before = {name: pool.clone() for name, pool in pools.items()}
    out = engines["think"].run({**inputs, **{name: device_array(pool) for name, pool in pools.items()}})
    assert out["finite"].tolist() == [True, False, True]
    for name in ("k_new", "v_new"):
        new = tensor_of(out[name], CPU)
        np.testing.assert_allclose(new[:, [0, 2]], expected[name][:, [0, 2]], atol=1e-5, rtol=1e-4)
    choice = Choice(model.config.language)
    assert out["state_token"][[0, 2]].tolist() == [choice.state(expected, row) for row in (0, 2)]
    assert all(pools[name].equal(before[name]) for name in pools)


@pytest.mark.parametrize("height", [2.0, 2.5, 3.0])
@pytest.mark.parametrize("likely", [(9,), (300, 40), ("eou", 500), ("state", 7, 8), ("states", 11), ()])
def test_tokens_are_chosen_on_the_device_as_on_the_host(engines, model, likely, height):
    """Among equals the first; what is no text never as text; speaking only where it is 2.5 likelier."""
    language = model.config.language
    named = {"eou": (language.eou_id,), "state": language.state_ids[1:2], "states": language.state_ids[::-1]}
    logits = np.zeros((1, language.vocab_size), dtype=np.float32)
    for name in likely:
        logits[:, list(named.get(name, (name,)))] = height
    chosen = {name: ids.item() for name, ids in engines["think"].choices(torch.from_numpy(logits)).items()}
    host, out = Choice(language), {"logits": logits}
    assert chosen == {"state_token": host.state(out, 0), "text_token": host.text(out, 0)}


def test_bfloat16_stays_close_to_the_model(directories, model):
    engines = load_engines(directories / "bfloat16", ("think", "perform"), device="cpu")
    for step in ("think", "perform"):
        inputs = example(model, step, batch=2)
        out, expected = engines[step].run(inputs), oracle(model, step, inputs)
        for name, want in expected.items():
            assert np.linalg.norm(out[name] - want) < 0.02 * np.linalg.norm(want), name


def test_engine_set_says_what_the_runtime_asks(directories):
    engines = load_engines(directories / "float32", ("perform",), device="cpu")
    assert engines.config == small_config()
    assert engines.max_batch == 4
    assert engines.tokenizer_path.exists()
    with pytest.raises(EngineError, match="step think"):
        engines["think"]


def test_loader_refuses_altered_weights_and_other_targets(directories, tmp_path):
    copy = shutil.copytree(directories / "float32", tmp_path / "copy")
    data = bytearray((copy / "backbone.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "backbone.safetensors").write_bytes(data)
    with pytest.raises(ManifestError, match="altered after the build"):
        load_engines(copy, ("perform",), device="cpu")
    with pytest.raises(ManifestError, match="target: expected onnxruntime, built for torch-cuda"):
        verify_engines(directories / "float32", target="onnxruntime")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_video": np.zeros((1, 3, 64), np.float32)}, r"x_video: expected float32 \[1, 4, 64\], got float32 \[1, 3"),
        ({"tau": np.zeros(1)}, "tau: expected float32"),
        ({"page_table": np.full((1, 3), 6)}, "page_table: expected pages 0 to 5, got 6 to 6"),
        ({"page_range": np.zeros((1, 2, 2), np.int64)}, "page_range: expected"),
        ({"page_table": np.zeros((1, 5), np.int64), "page_range": np.tile([0, 8], (1, 5, 1))}, "1 to 4, got 5"),
        ({"k_pool": np.zeros((2, 6, 8, 1, 16), np.float32)}, r"k_pool: expected \[2, pages, page, 2, 16\]"),
        ({"x_audio": None}, "x_audio: expected float32"),
    ],
)
def test_misfits_are_named(engines, model, change, message):
    inputs = {**example(model, "perform", batch=1), **change}
    with pytest.raises(EngineError, match=message):
        engines["perform"].run({name: value for name, value in inputs.items() if value is not None})


def test_too_many_rows_are_refused(engines, model):
    with pytest.raises(EngineError, match="batch: expected 1 to 4 rows, got 5"):
        engines["perceive"].run(example(model, "perceive", batch=5))


def test_buckets():
    limits = Limits(max_batch=6, max_pages=200)
    assert limits.all_rows() == [1, 2, 4, 6]
    assert [limits.pages(n) for n in (1, 64, 65, 130, 200)] == [64, 64, 128, 200, 200]
    assert limits.all_pages() == [64, 128, 200]
    assert Limits(1, 20).all_pages() == [20]


def test_empty_ends_of_a_history_fill_no_bucket(engines, model):
    """The runtime pads page tables for CPU engines; more columns than a row may have are no misfit if none is seen."""
    inputs = example(model, "perform", batch=2)
    inputs["page_range"][:, -1] = 0
    padded = {**inputs, "page_table": np.pad(inputs["page_table"], ((0, 0), (0, 9)))}
    padded["page_range"] = np.pad(inputs["page_range"], ((0, 0), (0, 9), (0, 0)))
    for name, value in engines["perform"].run(padded).items():
        np.testing.assert_array_equal(value, engines["perform"].run(inputs)[name])


def test_weights_that_do_not_fit_are_all_named():
    config = small_config()
    tensors = {name: torch.zeros(shape) for name, shape in expected_shapes(config).items()}
    del tensors["norm"]
    tensors |= {"embed": torch.zeros(3, 3), "surplus": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"3 tensors do not fit tiny[\s\S]*extra surplus[\s\S]*missing norm"):
        BackboneWeights(config, tensors)


def test_staging_zeroes_what_a_call_does_not_fill():
    layout = Layout({"a": Slot((3, 4), "float32", ragged=True), "b": Slot((3,), "int64")})
    assert layout.places == {"a": 0, "b": 256}
    block = HostBlock(layout, bytearray(layout.bytes))
    block.fill({"a": np.ones((3, 4), np.float32), "b": np.ones(3, np.int64)}, 3)
    block.fill({"a": np.ones((1, 2), np.float32), "b": np.ones(1, np.int64)}, 1)
    assert block.arrays["a"].sum() == 2
    assert block.arrays["b"].tolist() == [1, 0, 0]
    with pytest.raises(ValueError, match=r"a: expected float32 \[1, 4\] at most, got float32 \[1, 5\]"):
        block.fill({"a": np.ones((1, 5), np.float32), "b": np.ones(1, np.int64)}, 1)
