"""Every kernel of think and perform compiles for the GPUs we name, on a machine without one."""

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
CHIPS = {"80": (108, 166912), "90": (132, 232448), "120": (170, 101376)}
KERNELS = {
    "_fill_kernel",
    "_attend_kernel",
    "_merge_kernel",
    "_add_norm_kernel",
    "_norm_rope_kernel",
    "_silu_mul_kernel",
    "_commit_kernel",
}
MAX_STACK = 256  # bytes a thread; the mask's addresses may spill a little, nothing else does


@pytest.mark.parametrize("capability", CHIPS)
def test_kernels_compile_for(capability, tmp_path):
    processors, shared = CHIPS[capability]
    command = [sys.executable, str(SCRIPT), capability, str(processors), str(shared), "v0.1-8b"]
    env = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert {kernel["name"] for kernel in kernels} == KERNELS
    for kernel in kernels:
        assert kernel["shared"] <= shared, kernel
        assert kernel["stack"] <= MAX_STACK, kernel
