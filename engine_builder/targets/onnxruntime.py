"""Target `onnxruntime`: the step graph is the engine; what can be proven now is proven at build time."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnxruntime

FILE_SUFFIX = ".onnx"


class GraphBuilder:
    """Needs no shape ranges: a graph serves every size."""

    def libraries(self) -> dict[str, str]:
        return {"onnxruntime": onnxruntime.__version__}

    def build_step(self, step: str, graph: Path, output: Path, axes: dict[str, dict[int, str]]) -> None:
        """Copies the graph and opens it once: an operator that this runtime lacks is found now and not in service."""
        if graph.with_name(graph.name + ".data").exists():
            # Weights beside the graph would lie outside the manifest's hash.
            raise RuntimeError(f"{step}: more weights than one ONNX file holds (2 GiB); onnxruntime serves smaller "
                               "models, build this one for tensorrt, tensorrt-rtx or torch-cuda")  # fmt: skip
        shutil.copyfile(graph, output)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            onnxruntime.InferenceSession(str(output), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise RuntimeError(
                f"{step}: onnxruntime {onnxruntime.__version__} cannot open the graph: {error}"
            ) from error
