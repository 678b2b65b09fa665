"""The torch-cuda engines behind a real Triton, on host memory and Triton's interpreter: the wiring of a GPU server.

Pool, link, solver bank, processes and their order are those of a GPU. What is not: CUDA itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import real_server

if TYPE_CHECKING:
    import psutil  # the tests of a bare GPU machine, which has none, import this file

pytestmark = pytest.mark.server
UNITS = 3  # the second session forgets its second unit with the third


@pytest.fixture(scope="module")
def torch_engines(mini_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from engine_builder.build import BuildOptions, build_engines

    directory = tmp_path_factory.mktemp("engines") / "mini-torch"
    options = BuildOptions(target="torch-cuda", precision="float32", max_batch=2, max_pages=128, page_tokens=8)
    build_engines(mini_checkpoint, directory, options)
    return directory


@pytest.fixture(autouse=True)
def _slow_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to three interpreters on two cores: torch's own threads would only wait for each other."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(real_server, "START_SECONDS", 120.0)


def talk(server: Any) -> list[Any]:
    """Two sessions in turns: one with a prompt and text, one that forgets and takes more solver steps."""
    stream = server.stream()
    starts = {
        1: {"seed": 1, "prompt": "be", "solver_steps": 1},
        2: {"seed": 2, "retention": {"window": {"sink": 1, "recent": 1}}, "solver_steps": 2},
    }
    answers = []
    for unit in range(UNITS):
        for key, options in starts.items():
            start = {"options": options} if unit == 0 else {"text": "hi" if key == 1 else ""}
            answers.append(stream.ask(key, unit, voice=key, end=unit == UNITS - 1, **start))
    return answers


@pytest.mark.parametrize("device", ["cpu", "cpu,cpu"])
def test_the_conversation_is_that_of_the_onnxruntime_engines(
    server: Any, start_server: Callable[..., Any], torch_engines: Path, device: str
) -> None:
    """`cpu,cpu`: as with two GPUs, the performer has a pool of its own that the thinker keeps equal."""
    other = start_server("--device", device, engines=torch_engines)
    compare(talk(other), talk(server))
    end(other)


def test_a_performer_of_two_ranks(server: Any, start_server: Callable[..., Any], torch_engines: Path) -> None:
    """It says the same; a rank that dies is noticed, and another server has another; with that it ends."""
    from triton_models.launcher.server_process import wait_until_gone

    other = start_server("--device", "cpu,cpu,cpu", engines=torch_engines)
    compare(talk(other), talk(server))
    other.close_streams()
    first = rank_of(other)
    first.kill()
    fault = f"performer: rank 1 of the performer group (pid {first.pid}) has ended with -9"
    other.wait(lambda: f"fault: {fault}" in other.log.read_text(), 20, "the fault in the launcher's words")
    other.wait_ready(restarts=1)
    second = rank_of(other)
    end(other)
    assert wait_until_gone([first.pid, second.pid], 5.0)


def rank_of(server: Any) -> psutil.Process:
    """The second of two ranks: a child of the first, which is the performer's stage."""
    import psutil

    (rank,) = psutil.Process(server.info["model_pids"]["performer"]).children()
    return rank


def compare(got: list[Any], expected: list[Any]) -> None:
    assert [(a.unit, a.state, a.text) for a in got] == [(a.unit, a.state, a.text) for a in expected]
    assert [a.info["steps"] for a in got] == [a.info["steps"] for a in expected]
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours.pcm, theirs.pcm, atol=1e-4)
        assert np.abs(ours.frames.astype(int) - theirs.frames).max() <= 1
    assert len({a.state for a in expected} | {a.text for a in expected}) > 1


def end(other: Any) -> None:
    other.close_streams()
    other.wait(other.free_again, 20, "no session and no page in use")
    assert other.stop() == 0, other.log.read_text()
    assert other.shared_memory() == []
