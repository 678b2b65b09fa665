"""What both the builder and the executor must know of a target. Imports nothing."""

from __future__ import annotations

TENSORRT_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}  # target -> Python module
GPU_TARGETS = (*TENSORRT_MODULES, "torch-cuda")
