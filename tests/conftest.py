"""What tests of several parts share: one small real model, its checkpoint and its engines, built once a run."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

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
    audio=AudioConfig(latent_dim=32, mel_bands=16, encoder_channels=16, encoder_layers=2),
    video=VideoConfig(height=32, width=32, stride=16, latent_dim=12, perceive_grid=(1, 2), encoder_channels=8),
    language=LanguageConfig(slots=3, text_tokens=3),
    backbone=BackboneConfig(hidden_size=64, layers=3, heads=4, kv_heads=2, head_dim=16, intermediate_size=96),
)


@pytest.fixture(scope="session")
def mini_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights whose outputs vary: with the usual small ones every unit would say the same."""
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
    directory = tmp_path_factory.mktemp("checkpoint") / "mini"
    save_checkpoint(model, directory)
    return directory


@pytest.fixture(scope="session")
def mini_engines(mini_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engine directory of `mini_checkpoint` for onnxruntime."""
    from engine_builder.build import BuildOptions, build_engines

    directory = tmp_path_factory.mktemp("engines") / "mini"
    build_engines(mini_checkpoint, directory, BuildOptions(max_batch=4, page_tokens=8))
    return directory
