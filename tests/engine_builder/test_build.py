"""Engines and manifest: built for real, refused when anything about them changed."""

import shutil
import sys

import numpy as np
import onnxruntime
import pytest
import torch

from engine_builder.__main__ import main
from engine_builder.build import BuildOptions, build_engines, verify_engines
from engine_builder.checkpoint import load_checkpoint
from engine_builder.manifest import ENCODE, STEPS, ManifestError
from engine_builder.model.steps import step_specs

pytestmark = pytest.mark.engine


@pytest.fixture
def copy(tiny_engines, tmp_path):
    return shutil.copytree(tiny_engines, tmp_path / "copy")


def test_build_writes_what_the_manifest_says(tiny_engines, tiny_checkpoint):
    manifest = verify_engines(tiny_engines)
    assert manifest.model == load_checkpoint(tiny_checkpoint).config
    assert set(manifest.engines) == {*STEPS, ENCODE}
    assert "random (seed 0)" in manifest.weights
    think = {t.name: t for t in manifest.engines["think"].inputs}
    assert think["block_mask"].shape == ("batch", "tokens", "tokens")
    assert think["ids"].dtype == "int64"


@pytest.mark.parametrize("step", [*STEPS, ENCODE])
@pytest.mark.parametrize("batch", [1, 3])
def test_engines_compute_what_the_steps_compute(tiny_engines, tiny_checkpoint, step, batch):
    spec = step_specs(load_checkpoint(tiny_checkpoint), batch=batch, pages=4)[step]
    rng = np.random.default_rng(0)
    inputs = {}
    for name, example in spec.inputs.items():
        value = example.numpy()
        if name == "page_table":
            value = rng.integers(0, 8, value.shape)
        elif name == "page_range":
            value = np.sort(rng.integers(0, 17, value.shape), axis=-1)
        elif name == "frames":
            value = rng.integers(0, 256, value.shape, dtype=np.uint8)
        elif name == "ids":
            value = rng.integers(0, 512, value.shape)
        elif name not in ("rope_cos", "rope_sin", "block_mask", "tau"):
            value = rng.standard_normal(value.shape, dtype=np.float32) * 0.3
        inputs[name] = value
    session = onnxruntime.InferenceSession(str(tiny_engines / f"{step}.onnx"), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = spec.module(*(torch.from_numpy(v) for v in inputs.values()))
    for got, want in zip(session.run(list(spec.outputs), inputs), expected, strict=True):
        tolerance = 1.0 if got.dtype == np.uint8 else 1e-4  # a pixel may round the other way
        np.testing.assert_allclose(got.astype(np.float64), want.numpy(), atol=tolerance, rtol=1e-4)


@pytest.mark.parametrize("capability", ["12.0", pytest.param("8.9", marks=pytest.mark.slow)])
def test_all_steps_build_with_tensorrt_rtx(tiny_checkpoint, tmp_path, capability):
    """A real ahead-of-time build; running the plans needs a GPU. Presets are built for 8.9 (test_preset_plans.py)."""
    output = tmp_path / "rtx"
    arguments = ["--target", "tensorrt-rtx", "--compute-capability", capability]
    code = main(["build", str(tiny_checkpoint), str(output), *arguments])
    assert code == 0
    manifest = verify_engines(output, target="tensorrt-rtx")
    assert manifest.compute_capability == capability
    assert all((output / e.file).stat().st_size > 100_000 for e in manifest.engines.values())


def test_unknown_compute_capability_lists_the_known(tiny_checkpoint, tmp_path, capsys):
    code = main(
        ["build", str(tiny_checkpoint), str(tmp_path / "o"), "--target", "tensorrt-rtx", "--compute-capability", "1.0"]
    )
    assert code == 1
    assert "8.9" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_missing_library_says_how_to_install_it(tiny_checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # as if not installed, also where it is
    assert main(["build", str(tiny_checkpoint), str(tmp_path / "o"), "--target", "tensorrt"]) == 1
    assert "pip install tensorrt" in capsys.readouterr().err


def test_foreign_directory_is_not_overwritten(tiny_checkpoint, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ValueError, match="expected an empty or an engine directory"):
        build_engines(tiny_checkpoint, tmp_path, BuildOptions())
    assert (tmp_path / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize("step", [*STEPS, ENCODE])
def test_one_altered_byte_is_refused(copy, step):
    path = copy / f"{step}.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        ManifestError, match=rf"engine {step}: .*altered after the build[\s\S]*rebuild: python -m engine_builder"
    ):
        verify_engines(copy)


def test_missing_files_and_other_targets_are_refused(copy, tmp_path):
    with pytest.raises(ManifestError, match="expected an engine directory"):
        verify_engines(tmp_path / "absent")
    with pytest.raises(ManifestError, match="target: expected tensorrt, built for onnxruntime"):
        verify_engines(copy, target="tensorrt")
    (copy / "render.onnx").unlink()
    with pytest.raises(ManifestError, match=r"render\.onnx is missing"):
        verify_engines(copy)
