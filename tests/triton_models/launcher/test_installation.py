"""Which tritonserver is started: the container's or the wheel's, and with which addresses and endpoints."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from triton_models import launch
from triton_models.launcher import installation
from triton_models.launcher.installation import BACKEND_FILES, ServerError, find_server
from triton_models.launcher.server_process import ServerPlan, reached

pytestmark = pytest.mark.unit

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


def container(place: Path, python: str = HERE) -> Path:
    """What NVIDIA's image has, as far as the launcher looks."""
    (place / "bin").mkdir(parents=True)
    (place / "bin" / "tritonserver").touch()
    (place / "backends" / "python").mkdir(parents=True)
    for name in BACKEND_FILES:
        (place / "backends" / "python" / name).write_bytes(f"\x7fELF..\0libpython{python}.so.1.0\0".encode())
    return place


def plan(place: Path, grpc: str = "127.0.0.1", *opened: str) -> ServerPlan:
    folders = place / "repository", place / "backends"
    return ServerPlan(*folders, None, 8001, 8002, "wst-", grpc, "10.0.0.2", frozenset(opened))


def test_the_containers_server_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opt = container(tmp_path / "opt")
    monkeypatch.setattr(installation, "CONTAINER", opt)
    found = find_server(tmp_path / "scratch")
    assert (found.server, found.backends) == (opt / "bin" / "tritonserver", opt / "backends")
    assert not (tmp_path / "scratch").exists()


def test_elsewhere_it_is_the_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "CONTAINER", tmp_path / "none")
    found = find_server(tmp_path / "scratch")
    assert found.server.is_file()
    assert sorted(path.name for path in (found.backends / "python").iterdir()) == sorted(BACKEND_FILES)


def test_without_either_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "CONTAINER", tmp_path / "none")
    monkeypatch.setattr(installation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ServerError, match=r"got neither; install it: pip install 'wan-streamer-triton\[serve\]'"):
        find_server(tmp_path)


def test_a_backend_for_another_python_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "CONTAINER", container(tmp_path / "opt", "3.9"))
    with pytest.raises(ServerError, match=rf"is for Python 3\.9, this is {HERE}"):
        find_server(tmp_path)


def test_a_container_without_the_python_backend_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opt = container(tmp_path / "opt")
    monkeypatch.setattr(installation, "CONTAINER", opt)
    (opt / "backends" / "python" / BACKEND_FILES[2]).unlink()
    with pytest.raises(ServerError, match="got none of backends/python/triton_python_backend_stub"):
        find_server(tmp_path)


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_nothing_but_conversation_is_open(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opt = container(tmp_path / "opt")
    monkeypatch.setattr(installation, "CONTAINER", opt)
    command = plan(tmp_path, address).command()
    for part in (
        f"--grpc-address={address}",
        "--allow-http=false",
        "--metrics-address=10.0.0.2",
        "--model-control-mode=none",
        f"--backend-directory={opt / 'backends'}",
    ):
        assert part in command
    shut = "--grpc-restricted-protocol=shared-memory,model-repository,statistics,trace,logging:Shut="
    (given,) = [part for part in command if part.startswith(shut)]
    (other,) = [part for part in plan(tmp_path, address).command() if part.startswith(shut)]
    assert given != other, "nobody knows the value"
    assert len(given.removeprefix(shut)) == 32


def test_doors_that_were_asked_for_are_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "CONTAINER", container(tmp_path / "opt"))
    command = plan(tmp_path, "127.0.0.1", "http", "statistics").command()
    assert "--http-address=127.0.0.1" in command
    shut = [part.split("=")[0:2] for part in command if "restricted" in part]
    assert shut == [
        ["--http-restricted-api", "shared-memory,model-repository,trace,logging:Shut"],
        ["--grpc-restricted-protocol", "shared-memory,model-repository,trace,logging:Shut"],
    ]


def test_addresses_are_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        launch.main(["--engines", "x", "--grpc-address", "server"])
    assert reached("0.0.0.0") == "127.0.0.1"
    assert reached("10.0.0.2") == "10.0.0.2"
    assert "expected an IPv4 address, got 'server'" in capsys.readouterr().err


def test_a_directory_that_cannot_be_written_to_is_named(
    engines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert launch.main(["--engines", str(engines), "--runs", str(tmp_path / "file")]) == 2
    assert f"{tmp_path / 'file' / 'serve'}: expected a directory that can be written to" in capsys.readouterr().err


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Engines that nobody looks at."""
    monkeypatch.setattr(launch, "verified", lambda *_: None)
    return tmp_path / "engines"
