"""Engines that must be signed: the launcher and the process that loads them both look."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from engine_builder.__main__ import main as builder
from engine_builder.manifest import ManifestError
from triton_models.launcher.checks import verified
from triton_models.service.load import load_engines

pytestmark = pytest.mark.engine


def test_engines_that_nobody_trusted_signed_are_refused(mini_engines: Path, tmp_path: Path) -> None:
    engines = tmp_path / "engines"
    shutil.copytree(mini_engines, engines)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for key in (ours, theirs):
        assert builder(["keygen", str(key)]) == 0
    trusted, stranger = ours.with_name("ours.pub"), theirs.with_name("theirs.pub")

    def refused(key: Path) -> None:
        with pytest.raises(ManifestError):
            verified(engines, trusted_key=key)
        with pytest.raises(ManifestError):
            load_engines(engines, ("render",), trusted_key=key)

    refused(trusted)  # not signed at all
    assert builder(["sign", str(engines), "--key", str(ours)]) == 0
    refused(stranger)
    assert verified(engines, trusted_key=trusted).model.name == "mini"
    assert set(load_engines(engines, ("render",), trusted_key=trusted).engines) == {"render"}
    (engines / "manifest.json").write_text((engines / "manifest.json").read_text().replace('"mini"', '"mine"'))
    refused(trusted)
