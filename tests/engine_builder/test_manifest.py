"""The manifest's own fields: sealed, typed, ranged. No damage ends in a traceback, none is taken for an engine."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine_builder.__main__ import main
from engine_builder.manifest import MANIFEST, STEPS, EngineEntry, Manifest, ManifestError, TensorSpec, _seal, sha256
from engine_builder.presets import preset

pytestmark = pytest.mark.unit
DELETED = object()
VALUES = (DELETED, None, True, -1, 1.5, 10**30, "", "x", "../x", "\0", "\ud800", [], [[]], [None], {}, {"a": {"b": 1}})


@pytest.fixture
def engines(tmp_path: Path) -> Path:
    """A directory whose engines are four files of a few bytes."""
    directory = tmp_path / "engines"
    directory.mkdir()
    for name in (*STEPS, "tokenizer.json"):
        (directory / name).write_text(name)
    spec = (TensorSpec("x", "float32", ("batch", 4)),)
    Manifest(
        model=preset("tiny"),
        target="tensorrt-rtx",
        precision="bfloat16",
        compute_capability="8.9",
        weights="random",
        libraries={"torch": "2.13.0"},
        limits={"max_batch": 8, "max_pages": 4, "pool_pages": 64, "page_tokens": 16},
        state={"perceive": 3, "render": 4},
        engines={step: EngineEntry(step, sha256(directory / step), "0" * 64, spec, spec) for step in STEPS},
        tokenizer={"file": "tokenizer.json", "sha256": sha256(directory / "tokenizer.json")},
        rebuild="python -m engine_builder build a b",
        defaults={"retention": {"window": {"sink": 0, "recent": 16}}},
    ).save(directory)
    return directory


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in JSON, the innermost and those around it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def mutations(whole: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every place with every wrong value."""
    for *outer, key in list(places(whole)):
        for value in VALUES:
            data = copy.deepcopy(whole)
            inner: Any = data
            for step in outer:
                inner = inner[step]
            if value is DELETED:
                del inner[key]
            elif inner[key] == value:
                continue
            else:
                inner[key] = value
            yield f"{[*outer, key]} = {'deleted' if value is DELETED else repr(value)}", data


def refusal(engines: Path, data: dict[str, Any]) -> str:
    """Why a manifest is refused; empty if it is taken, and then it can be written and read again."""
    try:
        found = Manifest.parse(json.dumps(data).encode(), engines)
        found.verify(engines)
    except ManifestError as error:
        return str(error)
    found.save(engines)
    assert Manifest.load(engines) == found
    return ""


def test_what_is_written_is_read(engines: Path) -> None:
    manifest = Manifest.load(engines)
    manifest.verify(engines, target="tensorrt-rtx")
    assert manifest.model == preset("tiny")
    assert manifest.engines["think"].inputs[0].shape == ("batch", 4)


def test_no_damaged_field_gets_through(engines: Path) -> None:
    """As it is, the seal finds every one; with a new seal, the types find those that nothing could work with."""
    whole = json.loads((engines / MANIFEST).read_text())
    refused = total = 0
    for what, data in mutations(whole):
        total += 1
        assert refusal(engines, data), what
        data["seal"] = _seal({key: value for key, value in data.items() if key != "seal"})
        refused += bool(refusal(engines, data))
    assert total > 2000
    assert refused > 0.9 * total


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", 1, "expected manifest format 2, got 1; rebuild the engines"),
        ("target", "vulkan", "manifest.target: expected one of onnxruntime, tensorrt, tensorrt-rtx, torch-cuda, got"),
        ("limits", {"max_batch": 8}, "manifest.limits: expected max_batch, max_pages, pool_pages, page_tokens, got"),
        ("state", {"perceive": 1.5, "render": 1}, "manifest.state[...]: expected int, got float"),
        ("weights", 7, "manifest.weights: expected str, got int (7); rebuild: python -m engine_builder build a b"),
        ("defaults", {"retention": 3}, "manifest.defaults.retention: expected str | object, got int"),
        ("engines", {}, "manifest.engines: expected perceive, think, perform, render, got"),
    ],
)
def test_a_forged_field_is_named(engines: Path, field: str, value: object, message: str) -> None:
    data = json.loads((engines / MANIFEST).read_text())
    del data["seal"]
    data[field] = value
    with pytest.raises(ManifestError) as error:
        Manifest.parse(json.dumps({**data, "seal": _seal(data)}).encode(), engines)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"\xef\xbb\xbf{}", b"null", b"[]", b'"x"', b"NaN",
     b"{}", b'{"format": ' + b"9" * 5000 + b"}", b'{"format": 1e999}', b'{"format": 2}',
     b'{"format": 2, "rebuild": []}'],
)  # fmt: skip
def test_no_file_ends_in_a_traceback(engines: Path, text: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (engines / MANIFEST).write_bytes(text)
    assert main(["verify", str(engines)]) == 1
    assert str(engines / MANIFEST) in capsys.readouterr().err


def test_what_is_no_file_is_refused(engines: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = engines / MANIFEST
    text = path.read_text()
    for make in (path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to(path)):
        path.unlink(missing_ok=True)
        make()
        assert main(["verify", str(engines)]) == 1
        assert str(path) in capsys.readouterr().err
        if path.is_dir():
            path.rmdir()
    path.unlink()
    path.write_text(text)
    (engines / "think").unlink()
    (engines / "think").symlink_to(engines.parent / "elsewhere")
    with pytest.raises(ManifestError, match="'think' points outside the engine directory"):
        Manifest.load(engines).verify(engines)
    (engines / "think").unlink()
    (engines / "think").symlink_to("think")
    with pytest.raises(ManifestError, match=r"engine think: think (cannot be read|is missing|points outside)"):
        Manifest.load(engines).verify(engines)
