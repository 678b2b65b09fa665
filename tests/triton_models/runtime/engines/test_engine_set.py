"""Loading engines: nothing is opened before the manifest is believed, and pools are read where they lie."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engine_builder.manifest import ManifestError
from triton_models.runtime.engines.engine import PERFORMER_STEPS, THINKER_STEPS, EngineError, OnnxEngine
from triton_models.service.load import load_engines

pytestmark = pytest.mark.engine


@pytest.fixture
def copied(mini_engines: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(mini_engines, tmp_path / "engines"))


def test_a_role_loads_its_steps_and_what_goes_with_them(mini_engines: Path) -> None:
    engines = load_engines(mini_engines, THINKER_STEPS)
    assert set(engines.engines) == {"perceive", "think", "encode"}
    assert engines.config.name == "mini"
    assert engines.max_batch == 4
    assert engines.tokenizer_path.is_file()
    assert set(engines.state_sizes) == {"perceive", "render", "encode"}
    with pytest.raises(EngineError, match="step perform: expected one of perceive, think, encode, which were loaded"):
        engines["perform"]


def test_one_altered_byte_is_refused_with_the_command_that_rebuilds(copied: Path) -> None:
    file = copied / "think.onnx"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(
        ManifestError, match=r"(?s)engine think: .*altered after the build.*rebuild: python -m engine_b"
    ):
        load_engines(copied, THINKER_STEPS)
    assert load_engines(copied, PERFORMER_STEPS)["perform"], "the performer does not load that file"


def test_a_changed_manifest_is_refused(copied: Path) -> None:
    manifest = copied / "manifest.json"
    data = json.loads(manifest.read_text())
    data["model"]["backbone"]["layers"] += 1
    manifest.write_text(json.dumps(data))
    with pytest.raises(ManifestError, match=r"changed after the build: expected seal.*rebuild: python -m engine_b"):
        load_engines(copied, THINKER_STEPS)


def test_a_missing_library_is_named_with_the_way_to_get_it(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match=r"expected the onnxruntime package.*pip install"):
        load_engines(copied, PERFORMER_STEPS)


def test_a_file_that_is_no_engine_and_inputs_that_do_not_fit(copied: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"not a graph")
    with pytest.raises(EngineError, match=r"bad\.onnx: onnxruntime .* cannot load it"):
        OnnxEngine(bad)
    with pytest.raises(EngineError, match="engine call failed"):
        OnnxEngine(copied / "render.onnx").run({"z_video": np.zeros((1, 1, 1), np.float32)})


POOL_COPY = """
import resource, sys
from pathlib import Path
import numpy as np
from engine_builder.layout import rope_tables
from triton_models.service.load import load_engines
engines = load_engines(Path(sys.argv[1]), ("perform",))
c = engines.config
b = c.backbone
pool = np.zeros((b.layers, 130_000, 8, b.kv_heads, b.head_dim), np.float32)  # untouched memory is not resident
pool.flags.writeable = False
cos, sin = rope_tables(b, np.arange(c.latent_tokens)[None])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
out = engines["perform"].run({
    "x_video": np.zeros((1, c.video.tokens, c.video.latent_dim), np.float32),
    "x_audio": np.zeros((1, c.audio.tokens, c.audio.latent_dim), np.float32),
    "tau": np.ones(1, np.float32), "rope_cos": cos, "rope_sin": sin,
    "page_table": np.array([[1, 2]]), "page_range": np.array([[[0, 8], [0, 3]]]), "k_pool": pool, "v_pool": pool,
})
assert np.isfinite(out["velocity_audio"]).all()
print(pool.nbytes // 2**20, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 2**10)
"""


def run_python(code: str, *arguments: str) -> str:
    root = Path(__file__).parents[4]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, cwd=root
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_read_only_pool_is_taken_without_a_copy(mini_engines: Path) -> None:
    pool_mib, grown_mib = map(int, run_python(POOL_COPY, str(mini_engines)).split())
    assert pool_mib > 300
    assert grown_mib < 50, "one copy would make the whole pool resident"


def test_the_serving_path_imports_no_torch() -> None:
    code = "import sys; import triton_models.service.local; print(sorted(m for m in sys.modules if 'torch' in m))"
    assert run_python(code) == "[]"
