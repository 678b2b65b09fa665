"""Loads the engines of a directory, each target with its own executor, once the manifest is verified."""

from __future__ import annotations

from pathlib import Path

from engine_builder.manifest import GPU_TARGETS, Manifest

from ..runtime.engines.engine import EngineSet, OnnxEngine, read_start_states


def load_engines(
    engine_dir: Path, steps: tuple[str, ...], threads: int = 1, device: str = "", trusted_key: Path | None = None
) -> EngineSet:
    """Verifies the manifest and the files of `steps`, and only then loads them.

    `threads`: ONNX Runtime threads of each engine. `device`: where GPU engines run (`runtime.engines.devices`; empty:
    the first GPU). `trusted_key`: of whom must have signed it. Raises `ManifestError` (what was built for what,
    and the command that rebuilds it) or `EngineError` (a library or a GPU is missing, or does not take the file).
    """
    manifest = Manifest.load(engine_dir)
    if trusted_key is not None:
        manifest.verify(engine_dir, steps=(), trusted_key=trusted_key)
    if manifest.target in GPU_TARGETS:
        from ..gpu.serving import load_engines as load  # a CPU needs nothing of it

        return load(engine_dir, steps, device)
    manifest.verify(engine_dir, steps=steps)
    return EngineSet(
        config=manifest.model,
        engines={step: OnnxEngine(engine_dir / manifest.engines[step].file, threads) for step in steps},
        state_sizes=dict(manifest.state),
        max_batch=manifest.limits["max_batch"],
        tokenizer_path=engine_dir / manifest.tokenizer["file"],
        manifest=manifest,
        start_states=read_start_states(engine_dir, manifest, steps),
    )
