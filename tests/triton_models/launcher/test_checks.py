"""What is checked before a server starts: ports, descriptors, the trace file, the folder of the run."""

from __future__ import annotations

import os
import resource
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from engine_builder.manifest import Manifest
from triton_models import launch
from triton_models.launcher import checks
from triton_models.launcher.checks import (
    LaunchError,
    check_descriptors,
    check_state,
    check_trace,
    lock_run,
    read_key,
    reserve_ports,
)
from triton_models.launcher.server_process import SHM

pytestmark = pytest.mark.unit
HERE = "127.0.0.1"
PREFIX = "wst-0123456789abcdef-"


@pytest.mark.parametrize(("key", "good"), [("0123456789abcdef" * 4 + "\n", True), ("short", False), ("ä" * 64, False)])
def test_the_secret_of_a_fleet_is_one(key: str, good: bool, tmp_path: Path) -> None:
    (file := tmp_path / "key").write_text(key)
    if good:
        assert read_key(file) == key.strip()
        return
    with pytest.raises(LaunchError, match=r"--fleet-key .*: expected 32 letters and digits or more"):
        read_key(file)


def test_a_taken_port_is_named_on_the_address_that_is_meant() -> None:
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LaunchError, match=rf"port {port} of 127\.0\.0\.2: expected a free one"):
            reserve_ports([(HERE, 0), ("127.0.0.2", port)])
        for each in reserve_ports([(HERE, port)]):
            each.close()


def test_a_port_stays_ours_from_the_look_to_the_use() -> None:
    reserved = reserve_ports([(HERE, 0), (HERE, 0)])
    ports = [each.getsockname()[1] for each in reserved]
    assert len(set(ports)) == 2
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((HERE, ports[0]))
    with socket.create_server((HERE, ports[0])), socket.create_connection((HERE, ports[0]), 5):
        pass  # a server that sets SO_REUSEADDR, as Triton's do, listens and is reached
    for each in reserved:
        each.close()


def test_too_few_descriptors_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limits.append(pair))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (32, 64))
    with pytest.raises(LaunchError, match="ulimit -n: expected at least 192 for 32 sessions, got 64"):
        check_descriptors(32)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 4096))
    check_descriptors(32)
    assert limits == [(192, 4096)]


@pytest.mark.parametrize("content", ["my notes", '{"other": 1}\n'])
def test_a_file_that_is_no_trace_stays(content: str, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text(content)
    with pytest.raises(LaunchError, match="expected no file or one of traces"):
        check_trace(notes)
    assert notes.read_text() == content


def test_traces_of_an_earlier_run_are_replaced(tmp_path: Path) -> None:
    traces = tmp_path / "new" / "traces.jsonl"
    check_trace(traces)
    traces.write_bytes(checks.TRACE_BEGIN + b": []}\n")
    check_trace(traces)
    assert not traces.exists()
    with pytest.raises(IsADirectoryError):
        check_trace(tmp_path)


def test_the_folder_of_a_run_is_private_and_remembers_what_to_clean(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with lock_run(run, PREFIX):
        assert run.stat().st_mode & 0o777 == 0o700
        with pytest.raises(LaunchError, match="expected no server of this name"):
            lock_run(run, "wst-other-")
    left = SHM / f"{PREFIX}status"
    left.mkdir()
    (left / "thinker").touch()
    with lock_run(run, "wst-ffffffffffffffff-"):
        assert not left.exists()
    (run / "lock").write_text("")  # damaged: names nothing
    with lock_run(run, PREFIX):
        pass
    (run / "lock").write_text("wst-" + "x" * 16 + "-")
    lock_run(run, PREFIX).close()


def test_a_full_disk_before_the_start_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28), str(tmp_path))

    monkeypatch.setattr(launch, "verified", lambda *_: None)
    monkeypatch.setattr(launch, "_serve", full)
    mask = os.umask(0o022)
    os.umask(mask)
    assert launch.main(["--engines", "x", "--runs", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"triton_models.launch: [Errno 28] No space left on device: '{tmp_path}'\n"
    assert os.umask(mask) == mask


@pytest.mark.parametrize("gigabytes", [0.0, -1.0, 2.2, float("nan"), float("inf")])
def test_a_state_that_does_not_fit_is_named(gigabytes: float) -> None:
    """That of the Wan VAE at 640x368."""
    wan = cast(Manifest, SimpleNamespace(state_bytes=2_230_132_736))
    with pytest.raises(LaunchError, match=rf"--state-gb: expected at least 2\.23, .* one session, got {gigabytes:g}"):
        check_state(wan, gigabytes)
    assert check_state(wan, 8.0) == 3
