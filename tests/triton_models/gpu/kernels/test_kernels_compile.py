"""Every kernel of think and perform compiles for the GPUs we name, on a machine without one, to code without waste."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine
SCRIPT = Path(__file__).with_name("compile_kernels.py")
# compute capability: multiprocessors, shared memory that a program may have (CUDA programming guide, table 27)
CHIPS = {"80": (108, 166912), "90": (132, 232448), "100": (148, 232448), "120": (170, 101376)}
KERNELS = {
    "_fill_kernel",
    "_attend_kernel",
    "_merge_kernel",
    "_add_norm_kernel",
    "_norm_rope_kernel",
    "_silu_mul_kernel",
}
ALL = ("v0.1-8b", "v0.1-1.7b", "v0.1-0.6b", "v0.2-8b")


@pytest.mark.parametrize(
    # spilled: bytes a thread. Without wgmma the scores of a masked tile do not quite fit beside the mask's addresses.
    ("capability", "precision", "presets", "spilled"),
    [
        ("80", "bfloat16", ALL[:1], 64),
        ("90", "bfloat16", ALL, 0),
        ("100", "bfloat16", ALL[:1], 0),
        ("120", "bfloat16", ALL[:1], 128),
        # For parity only, where the GPU itself compiles it; larger tiles spill 9 KB and compile for minutes.
        pytest.param("90", "float32", ("v0.1-0.6b",), 1024, marks=pytest.mark.slow),
    ],
)
def test_kernels_compile_for(capability, precision, presets, spilled, tmp_path):
    processors, shared = CHIPS[capability]
    command = [sys.executable, str(SCRIPT), capability, str(processors), str(shared), precision, *presets]
    env = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert {kernel["name"] for kernel in kernels} == KERNELS | ({"_to_fp8_kernel"} if capability != "80" else set())
    for kernel in kernels:
        assert kernel["shared"] <= shared, kernel
        assert kernel["spilled"] <= spilled, kernel
        assert not kernel["serialized"], kernel  # every wgmma would wait for the one before
        assert kernel["F2F"] == 0, kernel  # conversions one by one, on the unit that also does exp
    if capability == "90" and precision == "bfloat16":  # and that is what the wide passes use
        assert any(kernel["HGMMA"] for kernel in kernels if kernel["name"] == "_attend_kernel")
