"""What tests of several parts share: one small real model, its checkpoint and its engines, built once a run."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from engine_builder.config import AudioConfig, BackboneConfig, LanguageConfig, ModelConfig, VideoConfig


def _gpu() -> bool:
    """What `torch.cuda.is_available()` says, without importing torch for tests that need none."""
    try:
        return ctypes.CDLL("libcuda.so.1").cuInit(0) == 0
    except OSError:
        return False


# OpenAI Triton reads this when it is first imported, by whichever test: without a GPU its kernels are interpreted.
if not _gpu():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Reasons for which a test may be skipped where CI=true: what `make test` cannot install. Any other skip fails the run.
MAY_BE_SKIPPED = ("needs unshare and nsenter",)

_BEGUN = pytest.StashKey[bool]()


@cache
def _keeps_time(path: Path) -> bool:
    """Whether the tests of a file talk to servers in real time."""
    text = path.read_text()
    return "mark.server" in text or "mark.clients" in text


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The pieces that `make test` deals out to its workers: all that keeps real time is one, so that no two of it run
    beside each other; any other file is one, so that its fixtures are made once."""
    from xdist.scheduler import LoadScopeScheduling

    class Pieces(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "real time" if _keeps_time(config.rootpath / file) else file

    config.option.loadscopereorder = False
    return Pieces(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long pieces come first: what keeps real time, then what builds engines."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: (not _keeps_time(item.path), item.get_closest_marker("engine") is None))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """One worker begins with what keeps real time; any other leaves it the cores."""
    if not item.config.stash.get(_BEGUN, False) and hasattr(item.config, "workerinput"):
        os.nice(0 if _keeps_time(item.path) else 5)
    item.config.stash[_BEGUN] = True


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """On CI the whole suite is the whole suite: a missing tool is an error, not a shorter run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") != "true" or reporter is None:
        return
    skipped = [f"{report.nodeid}: {report.longrepr}" for report in reporter.stats.get("skipped", ())]
    if unlisted := [skip for skip in skipped if not any(reason in skip for reason in MAY_BE_SKIPPED)]:
        reporter.write_line("skipped, and not on the list of tests/conftest.py:", red=True)
        for skip in unlisted:
            reporter.write_line("  " + skip, red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


# All parts of `tiny`, each as small as it can be while every axis still has more than one element.
MINI = ModelConfig(
    name="mini",
    audio=AudioConfig(latent_dim=32, mel_bands=16, encoder_channels=16, encoder_dilations=(1, 3)),
    video=VideoConfig(height=32, width=32, stride=16, latent_dim=12, perceive_grid=(1, 2), encoder_channels=8),
    language=LanguageConfig(slots=3, text_tokens=3),
    backbone=BackboneConfig(hidden_size=64, layers=3, heads=4, kv_heads=2, head_dim=16, intermediate_size=96),
)


@pytest.fixture(scope="session")
def once(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, Callable[[Path], object]], Path]:
    """`once(name, make)`: the folder that `make` fills, one for all workers of a run."""
    from filelock import FileLock

    root = tmp_path_factory.getbasetemp()
    root = root.parent if hasattr(pytestconfig, "workerinput") else root

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        with FileLock(root / f"{name}.lock"):
            if not (root / name).exists():
                part = root / f"{name}.part"
                shutil.rmtree(part, ignore_errors=True)  # of somebody who failed
                make(part)
                part.rename(root / name)
        return root / name

    return folder


@pytest.fixture(scope="session")
def mini_checkpoint(once: Callable[..., Path]) -> Path:
    """Random weights whose outputs vary: with the usual small ones every unit would say the same."""
    return once("mini-checkpoint", _make_mini)


def _make_mini(directory: Path) -> None:
    import torch

    from engine_builder.checkpoint import random_model, save_checkpoint
    from engine_builder.tokenizer import heard_ids, word_ids

    model = random_model(MINI, seed=0)
    with torch.no_grad():
        # Initial weights of 0.02 leave a network of width 64 nearly linear; these make attention and history count.
        for name, weight in model.model.named_parameters():
            if "proj" in name:
                weight.mul_(8.0)
        model.model.embed_tokens.weight.mul_(4.0)
        # <eou> is never fed back, so a longer row only makes it win more often: units of every length occur.
        model.model.embed_tokens.weight[MINI.language.eou_id].mul_(4.0)
        words = [*word_ids(MINI.language).values(), *heard_ids(MINI.language).values()]
        model.model.embed_tokens.weight[words] *= 1.75  # it says something, and that it heard something
    save_checkpoint(model, directory)


@pytest.fixture(scope="session")
def mini_engines(mini_checkpoint: Path, once: Callable[..., Path]) -> Path:
    """Engine directory of `mini_checkpoint` for onnxruntime."""
    from engine_builder.build import BuildOptions, build_engines

    options = BuildOptions(max_batch=4, page_tokens=8)
    return once("mini-engines", lambda directory: build_engines(mini_checkpoint, directory, options))


@pytest.fixture(scope="session")
def tiny_checkpoint(once: Callable[..., Path]) -> Path:
    """The tiny preset with random weights, and two of its six layers: more of them take time and show nothing."""

    def make(directory: Path) -> None:
        from engine_builder.checkpoint import random_model, save_checkpoint
        from engine_builder.presets import preset
        from engine_builder.tokenizer import write_tiny_tokenizer

        tiny = preset("tiny")
        model = random_model(replace(tiny, backbone=replace(tiny.backbone, layers=2)), 0)
        directory.mkdir()
        save_checkpoint(model, directory, write_tiny_tokenizer(directory / "tokenizer.json"), note="random (seed 0)")

    return once("tiny-checkpoint", make)


@pytest.fixture(scope="session")
def tiny_engines(tiny_checkpoint: Path, once: Callable[..., Path]) -> Path:
    """Engine directory of `tiny_checkpoint` for onnxruntime."""
    from engine_builder.build import BuildOptions, build_engines

    return once("tiny-engines", lambda directory: build_engines(tiny_checkpoint, directory, BuildOptions()))
