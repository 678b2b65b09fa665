"""Loads the engines of a directory, each target with its own executor, once the manifest is verified."""

from __future__ import annotations

from pathlib import Path

from engine_builder.manifest import GPU_TARGETS, Manifest

from ..runtime.engines.engine import EngineError, EngineSet, OnnxEngine


def load_engines(
    engine_dir: Path, steps: tuple[str, ...], threads: int = 1, device: str = "", trusted_key: Path | None = None
) -> EngineSet:
    """Verifies the manifest and the files of `steps`, and only then loads them.

    `threads`: ONNX Runtime threads of each engine. `device`: where GPU engines run (`runtime.engines.devices`; empty:
    the first GPU). `trusted_key`: of whom must have signed it. Raises `ManifestError` (what was built for what,
    and the command that rebuilds it) or `EngineError` (a library or a GPU is missing, or does not take the file).
    """
    manifest = Manifest.load(engine_dir)
    steps = manifest.having(steps)
    if manifest.target in GPU_TARGETS:
        from ..gpu.serving import load_engines as load  # a CPU needs nothing of it

        return load(engine_dir, steps, device, trusted_key)
    if device:
        raise EngineError(f"device {device}: {engine_dir} was built for {manifest.target}, which runs on any processor")
    manifest.verify(engine_dir, steps=steps, trusted_key=trusted_key)
    engines = {step: OnnxEngine(engine_dir / manifest.engines[step].file, threads) for step in steps}
    return EngineSet.of(manifest, engine_dir, engines)
