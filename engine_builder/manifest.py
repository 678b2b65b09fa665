"""The manifest of an engine directory: what was built, for what, and the hashes that prove it (DESIGN 7).

Engines are executable code, so the loader checks this file and every hash before it opens one: its seal finds damage,
a signature (`signature.py`) finds everything else. Needs neither torch nor any engine library: the runtime imports it.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import msgspec
from msgspec import Meta

from .config import ConfigError, ModelConfig, from_json

MANIFEST = "manifest.json"
FORMAT = 2
STEPS = ("perceive", "think", "perform", "render")
ENCODE = "encode"  # the step that takes a persona's references; directories of before have none
TENSORRT_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}  # target -> Python module
GPU_TARGETS = (*TENSORRT_MODULES, "torch-cuda")
TARGETS = ("onnxruntime", *GPU_TARGETS)
PRECISIONS = ("float32", "bfloat16", "fp8")
_KEYS = {
    "limits": ("max_batch", "max_pages", "pool_pages", "page_tokens"),
    "state": ("perceive", "render"),
    "engines": STEPS,
    "tokenizer": ("file", "sha256"),
}

Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]  # in the directory itself
Size = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Retention = Literal["full"] | dict[Literal["window", "window_language"], dict[str, Size]]


class Defaults(TypedDict, total=False):
    """What suits a checkpoint.

    prompts: those that it was trained on, the first where nobody names one; without them it takes any.
    text_bytes: how much text it was trained to read at a time.  delegation: what it writes to hand work over.
    """

    retention: Retention
    prompts: list[str]
    text_bytes: Positive
    delegation: str


class ManifestError(ValueError):
    """An engine directory that must not be loaded; says what was built for what and how to rebuild it."""


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class TensorSpec:
    """One engine input or output; a dynamic axis is named by its symbol."""

    name: str
    dtype: str
    shape: tuple[Size | str, ...]


@dataclass(frozen=True)
class EngineEntry:
    """One step's engine file, relative to the directory, with the hash of the graph it was built from."""

    file: FileName
    sha256: Sha256
    graph_sha256: Sha256
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class StateFile:
    """The state [S] that sessions of a step begin with, as a .npy file of float32."""

    file: FileName
    sha256: Sha256


@dataclass(frozen=True)
class Manifest:
    model: ModelConfig
    target: str
    precision: str
    compute_capability: Annotated[str, Meta(pattern=r"^\d+\.\d+$")] | None  # None: any processor
    weights: str  # honest words: "random, seed 0", "trained, see the model card"
    libraries: dict[str, str]
    limits: dict[str, Positive]
    state: dict[str, Size]  # floats of per-session state
    engines: dict[str, EngineEntry]
    tokenizer: dict[str, str]
    rebuild: str
    defaults: Defaults = field(default_factory=Defaults)  # session options that suit the checkpoint
    start: dict[str, StateFile] = field(default_factory=dict)  # of steps whose sessions do not begin with zeros

    @property
    def pool_precision(self) -> str:
        """Of K and V: FP8 engines keep them in bfloat16."""
        return "bfloat16" if self.precision == "fp8" else self.precision

    @property
    def state_bytes(self) -> int:
        """Codec state of one session, in float32: of perceive and of render."""
        return 4 * sum(size for step, size in self.state.items() if step != ENCODE)

    def having(self, steps: Sequence[str]) -> tuple[str, ...]:
        """Those of `steps` that are here: all, but for `encode` in a directory of before."""
        return tuple(step for step in steps if step != ENCODE or step in self.engines)

    def save(self, directory: Path) -> None:
        data = {"format": FORMAT, **asdict(self), "model": self.model.to_dict()}
        (directory / MANIFEST).write_text(json.dumps({**data, "seal": _seal(data)}, indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path) -> Manifest:
        """Reads and checks the manifest itself; files are checked by `verify`."""
        path = directory / MANIFEST
        try:
            if path.exists() and not path.is_file():
                raise ManifestError(f"{path}: expected a file")
            return cls.parse(path.read_bytes(), directory)
        except FileNotFoundError:
            raise ManifestError(
                f"{path}: no such file; expected an engine directory. "
                f"`python -m engine_builder build CHECKPOINT {directory}` makes one"
            ) from None
        except OSError as error:
            raise ManifestError(f"{path}: cannot be read ({error.strerror})") from None

    @classmethod
    def parse(cls, text: bytes, directory: Path) -> Manifest:
        """What the bytes of a manifest say: an intact one, every field of its type and range. ManifestError if not."""
        path = directory / MANIFEST
        try:
            data = msgspec.json.decode(text)
            if not isinstance(data, dict):
                raise ValueError(f"expected an object, got {type(data).__name__}")
            written, seal = data.pop("seal", None), _seal(data)
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"{path}: not valid JSON ({error}); rebuild the engines") from None
        if (found := data.pop("format", None)) != FORMAT:
            raise ManifestError(f"{path}: expected manifest format {FORMAT}, got {found!r:.80}; rebuild the engines")
        rebuild = f"rebuild: {data['rebuild']}" if isinstance(data.get("rebuild"), str) else "rebuild the engines"
        if written != seal:
            raise ManifestError(
                f"{path}: changed after the build: expected seal {seal[:16]}, got {written!r:.18}; {rebuild}"
            )
        try:
            manifest = from_json(cls, data, "manifest")
            manifest._check()
        except ConfigError as error:
            raise ManifestError(f"{path}: {error}; {rebuild}") from None
        return manifest

    def _check(self) -> None:
        """What the types of the fields do not say."""
        for name, choices in (("target", TARGETS), ("precision", PRECISIONS)):
            if getattr(self, name) not in choices:
                got = getattr(self, name)
                raise ConfigError(f"manifest.{name}: expected one of {', '.join(choices)}, got {got!r:.80}")
        for name, keys in _KEYS.items():
            if set(getattr(self, name)) - {ENCODE} != set(keys) or (ENCODE in self.engines) != (ENCODE in self.state):
                got = ", ".join(getattr(self, name))
                raise ConfigError(f"manifest.{name}: expected {', '.join(keys)}, got {got:.80}")
        if not set(self.start) <= set(self.state):
            raise ConfigError(
                f"manifest.start: expected some of {', '.join(self.state)}, got {', '.join(self.start):.80}"
            )

    def verify(
        self,
        directory: Path,
        steps: tuple[str, ...] | None = None,
        target: str | None = None,
        trusted_key: Path | None = None,
    ) -> None:
        """Refuses a directory whose files of `steps` (None: of all), or whose target, are not what the manifest says.

        `trusted_key`: the public key that must have signed it; unsigned directories are then refused as well.
        Raises `ManifestError` listing every mismatch with expected, got and the command that rebuilds.
        """
        if trusted_key is not None:
            self._verify_signature(directory, trusted_key)
        steps = tuple(self.engines) if steps is None else steps
        wrong: list[str] = []
        if target is not None and target != self.target:
            wrong.append(f"target: expected {target}, built for {self.target}")
        files = {f"engine {step}": (self.engines[step].file, self.engines[step].sha256) for step in steps}
        files |= {f"start of {step}": (f.file, f.sha256) for step, f in self.start.items() if step in steps}
        files["tokenizer"] = (self.tokenizer["file"], self.tokenizer["sha256"])
        digest = functools.cache(sha256)  # steps may share a file of gigabytes
        for what, (name, expected) in files.items():
            path = directory / name
            try:
                if path.resolve().parent != directory.resolve():
                    wrong.append(f"{what}: {name!r} points outside the engine directory")
                elif not path.is_file():
                    wrong.append(f"{what}: {name} is missing")
                elif (got := digest(path)) != expected:
                    wrong.append(
                        f"{what}: {name} has SHA-256 {got[:16]}, expected {expected[:16]}: altered after the build"
                    )
            except (OSError, ValueError, RuntimeError) as error:  # not ours to read, no name, links in a circle
                wrong.append(f"{what}: {name} cannot be read ({error})")
        if wrong:
            raise ManifestError(f"{directory}: refused\n  " + "\n  ".join(wrong) + f"\n  rebuild: {self.rebuild}")

    def _verify_signature(self, directory: Path, trusted_key: Path) -> None:
        from .signature import SignatureError, verify

        path = directory / MANIFEST
        try:
            signed = verify(path, trusted_key)
        except SignatureError as error:
            raise ManifestError(f"{directory}: refused: {error}") from None
        if Manifest.parse(signed, directory) != self:  # the file was replaced after it was read
            raise ManifestError(f"{directory}: refused: {MANIFEST} changed while it was loaded")


def _seal(data: dict[str, Any]) -> str:
    """SHA-256 of the canonical JSON: finds a field that was changed, by hand or by a disk."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
