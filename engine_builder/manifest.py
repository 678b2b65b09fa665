"""The manifest of an engine directory: what was built, for what, and the hashes that prove it (DESIGN 7).

Engines are executable code, so the loader checks this file and every hash before it opens one. Needs neither torch
nor any engine library: the serving runtime imports it.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .config import ConfigError, ModelConfig

MANIFEST = "manifest.json"
FORMAT = 1
STEPS = ("perceive", "think", "perform", "render")
TENSORRT_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}  # target -> Python module
GPU_TARGETS = (*TENSORRT_MODULES, "torch-cuda")


class ManifestError(ValueError):
    """An engine directory that must not be loaded; says what was built for what and how to rebuild it."""


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@dataclass(frozen=True)
class TensorSpec:
    """One engine input or output; a dynamic axis is named by its symbol."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class EngineEntry:
    """One step's engine file, relative to the directory, with the hash of the graph it was built from."""

    file: str
    sha256: str
    graph_sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Manifest:
    model: ModelConfig
    target: str  # onnxruntime | tensorrt | tensorrt-rtx | torch-cuda
    precision: str
    compute_capability: str | None  # None: any processor
    weights: str  # honest words: "random, seed 0", "trained, see the model card"
    libraries: dict[str, str]
    limits: dict[str, int]  # max_batch, max_pages, page_tokens
    state: dict[str, int]  # floats of per-session state: perceive, render
    engines: dict[str, EngineEntry]
    tokenizer: dict[str, str]  # file, sha256
    rebuild: str
    defaults: dict[str, Any] = field(default_factory=dict)  # session options that suit the checkpoint (retention, ...)

    def save(self, directory: Path) -> None:
        data = asdict(self)
        data["model"] = self.model.to_dict()
        data = {"format": FORMAT, "model_digest": self.model.digest(), **data}
        (directory / MANIFEST).write_text(json.dumps(data, indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path) -> Manifest:
        """Reads and checks the manifest itself; files are checked by `verify`."""
        path = directory / MANIFEST
        try:
            data = json.loads(path.read_text())
        except FileNotFoundError:
            raise ManifestError(
                f"{path}: no such file; expected an engine directory. "
                f"`python -m engine_builder build CHECKPOINT {directory}` makes one"
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ManifestError(f"{path}: not valid JSON ({error}); rebuild the engines") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise ManifestError(f"{path}: expected manifest format {FORMAT}, got {found!r}; rebuild the engines")
        data.setdefault("defaults", {})
        absent = [f.name for f in fields(cls) if f.name not in data]
        if absent:
            raise ManifestError(f"{path}: missing {', '.join(absent)}; rebuild the engines")
        try:
            model = ModelConfig.from_dict(data["model"])
            engines = {step: _entry(entry) for step, entry in data["engines"].items()}
        except (ConfigError, KeyError, TypeError, AttributeError) as error:
            raise ManifestError(f"{path}: {error}; rebuild: {data['rebuild']}") from None
        if model.digest() != data.get("model_digest"):
            raise ManifestError(
                f"{path}: the model config was changed after the build (digest {model.digest()[:12]}, "
                f"built for {str(data.get('model_digest'))[:12]}); rebuild: {data['rebuild']}"
            )
        rest = {f.name: data[f.name] for f in fields(cls) if f.name not in ("model", "engines")}
        return cls(model=model, engines=engines, **rest)

    def verify(
        self,
        directory: Path,
        steps: tuple[str, ...] = STEPS,
        target: str | None = None,
        model: ModelConfig | None = None,
    ) -> None:
        """Refuses a directory whose files, target or model are not what the manifest says.

        Raises `ManifestError` listing every mismatch with expected, got and the command that rebuilds.
        """
        wrong: list[str] = []
        if target is not None and target != self.target:
            wrong.append(f"target: expected {target}, built for {self.target}")
        if model is not None and model.digest() != self.model.digest():
            wrong.append(
                f"model: expected {model.name} ({model.digest()[:12]}), built for {self.model.name} "
                f"({self.model.digest()[:12]})"
            )
        files = {f"engine {step}": (e.file, e.sha256) for step, e in self.engines.items() if step in steps}
        wrong += [f"engine {step}: not in the manifest" for step in steps if step not in self.engines]
        files["tokenizer"] = (self.tokenizer["file"], self.tokenizer["sha256"])
        digest = functools.cache(sha256)  # steps may share a file of gigabytes
        for what, (name, expected) in files.items():
            path = directory / name
            if path.resolve().parent != directory.resolve():
                wrong.append(f"{what}: {name!r} points outside the engine directory")
            elif not path.is_file():
                wrong.append(f"{what}: {name} is missing")
            elif (got := digest(path)) != expected:
                wrong.append(
                    f"{what}: {name} has SHA-256 {got[:16]}, expected {expected[:16]}: altered after the build"
                )
        if wrong:
            raise ManifestError(f"{directory}: refused\n  " + "\n  ".join(wrong) + f"\n  rebuild: {self.rebuild}")


def _entry(data: dict[str, Any]) -> EngineEntry:
    def tensors(key: str) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(t["name"], t["dtype"], tuple(t["shape"])) for t in data[key])

    return EngineEntry(data["file"], data["sha256"], data["graph_sha256"], tensors("inputs"), tensors("outputs"))
