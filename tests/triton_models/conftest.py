"""A real server through the launcher (`real_server.py`): one for all tests, and others for what would spoil it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from real_server import Server


@pytest.fixture(scope="session")
def _server(mini_engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # Solver steps are never skipped here: outputs are compared, and the machine may be loaded.
    tree = tmp_path_factory.mktemp("tree") / "my project & more" / "ü$"  # people have such folders
    shutil.copytree(mini_engines, tree / "engines")
    for package in ("triton_models", "engine_builder"):
        (tree / package).symlink_to(Path(__file__).parents[2] / package)
    flags = ("--keep-steps", "--admit-all", "--awake", "--pages", "1024")
    server = Server(tree / "engines", tree, *flags, within=("env", "-C", str(tree)))
    try:
        server.wait_ready()
        yield server
    finally:
        code = server.stop()
        assert code == 0, server.log.read_text()


@pytest.fixture
def server(_server: Server) -> Iterator[Server]:
    """The one server of all tests; a test leaves it ready and without sessions."""
    _server.wait_ready()
    yield _server
    _server.close_streams()
    _server.wait_ready()
    _server.wait(_server.free_again, 10, "no session and no page in use")


@pytest.fixture
def start_server(mini_engines: Path, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """For what would spoil the shared one: `start_server("--max-sessions", "1")`, ready when it returns."""
    started: list[Server] = []

    def start(
        *arguments: str, ready: bool = True, name: str = "own", engines: Path = mini_engines, **more: Any
    ) -> Server:
        given = ("--keep-steps", "--admit-all", "--pages", "256", *arguments)
        server = Server(engines, tmp_path, *given, name=name, **more)
        started.append(server)
        if ready:
            server.wait_ready()
        return server

    yield start
    for server in started:
        server.stop()
