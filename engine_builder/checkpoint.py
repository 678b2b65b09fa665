"""Checkpoints: a directory with config.json, tokenizer.json and safetensors (one file, or shards with an index).

A checkpoint of random weights may be a seed alone (seed.json): nothing is drawn before somebody needs the numbers, and
the torch-cuda target draws a backbone of gigabytes on the device that serves it. Beside them may lie what a checkpoint
says about itself, and the manifest passes on: one honest sentence about where its weights come from, and the session
options that suit them (for example the retention it was trained with).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .config import ModelConfig
from .manifest import Defaults, FileName
from .model.duplex import DuplexModel, MediaParts, init_weights

WEIGHTS = "model.safetensors"
SEED = "seed.json"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
NOTE = "WEIGHTS"
DEFAULTS = "defaults.json"
SHARD_BYTES = 4 * 2**30
MOST_LINES = 12  # of an error


class CheckpointError(ValueError):
    """A checkpoint that does not fit; the message says all that is wrong with it, up to a dozen lines."""


class _Seed(msgspec.Struct):
    seed: Annotated[int, msgspec.Meta(ge=0)]


class _Index(msgspec.Struct):
    weight_map: dict[str, FileName]


def build_model(config: ModelConfig) -> DuplexModel:
    """An evaluation-mode model whose parameters are not yet meaningful."""
    return DuplexModel(config).eval()


def random_model(config: ModelConfig, seed: int, backbone: bool = True) -> DuplexModel:
    """A model with seeded random weights; the linear codecs are usable transforms even so.

    Without `backbone` its encoders and codecs alone: all else lies on the meta device and takes no memory.
    """
    if backbone:
        model = build_model(config)
    else:
        with torch.device("meta"):
            model = build_model(config)
        for name, part in MediaParts.of(config)._asdict().items():
            setattr(model, name, part.eval())
    init_weights(model, seed)
    return model


def save_seed(config: ModelConfig, seed: int, directory: Path, note: str) -> None:
    """Writes a checkpoint that is a seed. Raises `CheckpointError` for a directory that has weights."""
    if any(directory.glob("*.safetensors")):
        raise CheckpointError(f"{directory}: expected a new directory, found weights: not replaced")
    directory.mkdir(parents=True, exist_ok=True)
    config.save(directory / CONFIG)
    (directory / NOTE).write_text(note.strip() + "\n")
    (directory / SEED).write_text(json.dumps({"seed": seed}) + "\n")


def read_seed(directory: Path) -> int | None:
    """The seed that a checkpoint consists of; None if it has weights."""
    path = directory / SEED
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Seed).seed if path.exists() else None
    except (msgspec.DecodeError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected a seed ({error})") from None


def save_checkpoint(
    model: DuplexModel,
    directory: Path,
    tokenizer: Path | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    note: str = "of unknown origin",
    defaults: Defaults | None = None,
) -> None:
    """Writes config.json, weights (sharded above `shard_bytes`), the sentence `note` and, if given, a copy of the
    tokenizer and the `defaults`. Raises `CheckpointError` for a directory with weights that did not come from here."""
    if any(directory.glob("*.safetensors")) and not (directory / NOTE).exists():
        raise CheckpointError(
            f"{directory}: expected a new directory or one of ours, found other weights: not replaced"
        )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / NOTE).write_text(note.strip() + "\n")
    for old in [*directory.glob("model*.safetensors"), directory / INDEX, directory / SEED]:
        old.unlink(missing_ok=True)
    model.config.save(directory / CONFIG)
    tensors = {n: (t if dtype is None else t.to(dtype)).detach().contiguous() for n, t in model.state_dict().items()}
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name in sorted(tensors):
        tensor_bytes = tensors[name].numel() * tensors[name].element_size()
        if shards[-1] and size + tensor_bytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensors[name]
        size += tensor_bytes
    if len(shards) == 1:
        save_file(shards[0], directory / WEIGHTS)
    else:
        index: dict[str, str] = {}
        for i, shard in enumerate(shards, start=1):
            file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
            save_file(shard, directory / file)
            index.update(dict.fromkeys(shard, file))
        (directory / INDEX).write_text(json.dumps({"weight_map": index}, indent=1) + "\n")
    if tokenizer is not None and tokenizer.resolve() != (directory / TOKENIZER).resolve():
        shutil.copyfile(tokenizer, directory / TOKENIZER)
    if defaults:
        (directory / DEFAULTS).write_text(json.dumps(defaults) + "\n")


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint (ours or Hugging Face's), checked to exist."""
    index = directory / INDEX
    try:
        names = (
            msgspec.json.decode(index.read_bytes(), type=_Index).weight_map.values() if index.exists() else [WEIGHTS]
        )
    except (msgspec.DecodeError, RecursionError) as error:
        raise CheckpointError(f"{index}: not a list of shards ({error}){pointer(index)}") from None
    files = [directory / name for name in sorted(set(names))]
    absent = [f.name for f in files if not f.is_file()]
    if absent:
        found = ", ".join(sorted(f.name for f in directory.glob("*"))[:8]) or "nothing"
        raise CheckpointError(
            f"{directory}: no {', '.join(absent)}; expected {WEIGHTS} or {INDEX} with all its shards, found {found}"
        )
    return files


def pointer(file: Path) -> str:
    """Words for an error, if a file is only the Git LFS pointer to what was meant."""
    with file.open("rb") as stream:
        start = stream.read(40)
    return "; it is a Git LFS pointer: `git lfs pull` fetches the file" if b"git-lfs" in start else ""


def read_tensors(directory: Path, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a checkpoint whose names begin with `prefix`, one by one, so that a large one never lies in memory
    twice."""
    for path in weight_files(directory):
        try:
            file = safe_open(path, framework="pt")
        except Exception as error:  # safetensors raises its own kind, which is no ValueError
            raise CheckpointError(f"{path}: not a safetensors file, or cut short ({error}){pointer(path)}") from None
        with file:
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                if name.startswith(prefix):
                    yield name, file.get_tensor(name)


def load_checkpoint(directory: Path, seeded_backbone: bool = True) -> DuplexModel:
    """Loads a checkpoint in float32; every missing, extra or misshapen tensor is reported at once.

    `seeded_backbone` False: of a checkpoint that is a seed the backbone is not drawn (see `random_model`).
    """
    config = ModelConfig.load(directory / CONFIG)
    if (seed := read_seed(directory)) is not None:
        return random_model(config, seed, seeded_backbone)
    model = build_model(config)
    copy_tensors(model, read_tensors(directory), str(directory))
    return model


def copy_tensors(model: nn.Module, tensors: Iterator[tuple[str, Tensor]], where: str, partial: bool = False) -> None:
    """Copies named tensors into the model. `partial` allows names of the model to be missing (imports)."""
    targets = model.state_dict()
    wrong: list[str] = []
    seen: set[str] = set()
    for name, tensor in tensors:
        if name not in targets:
            wrong.append(f"extra {name} {list(tensor.shape)}")
        elif targets[name].shape != tensor.shape:
            wrong.append(f"misshapen {name}: expected {list(targets[name].shape)}, got {list(tensor.shape)}")
        elif not torch.isfinite(tensor.float()).all():
            wrong.append(f"not finite {name}")
        else:
            targets[name].copy_(tensor)
        seen.add(name)
    if not partial:
        wrong += [f"missing {name} {list(targets[name].shape)}" for name in targets if name not in seen]
    if wrong:
        raise CheckpointError(f"{where}: {len(wrong)} tensors do not fit the config:\n  " + some(wrong))


def some(lines: Collection[str]) -> str:
    """The first of many lines of an error, which have one cause."""
    more = [f"and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
    return "\n  ".join([*sorted(lines)[:MOST_LINES], *more])


def read_weights_note(checkpoint: Path) -> str:
    path = checkpoint / NOTE
    return path.read_text().strip() if path.exists() else "of unknown origin (no WEIGHTS note in the checkpoint)"


def read_defaults(checkpoint: Path) -> Defaults:
    """`defaults.json` of a checkpoint: options that a server takes where a client says nothing. {} if there is none."""
    path = checkpoint / DEFAULTS
    try:
        given = msgspec.json.decode(path.read_bytes()) if path.exists() else {}
        if unknown := sorted(set(given) - Defaults.__optional_keys__):
            raise msgspec.ValidationError(f"got {', '.join(unknown)}")
        return msgspec.convert(given, Defaults)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as error:
        known = ", ".join(sorted(Defaults.__optional_keys__))
        raise CheckpointError(f"{path}: expected an object with any of {known} ({error})") from None
