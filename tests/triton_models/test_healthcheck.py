"""The container's HEALTHCHECK against a launcher that is ready, not ready, silent, gone, or no launcher at all."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from triton_models.healthcheck import check, main
from triton_models.launcher.checks import reserve_ports
from triton_models.launcher.health import Readiness
from triton_models.launcher.web import HealthServer

pytestmark = pytest.mark.unit


@pytest.fixture
def launcher() -> Iterator[tuple[Readiness, str]]:
    readiness = Readiness()
    web = HealthServer(readiness, reserve_ports([("127.0.0.1", 0)])[0])
    yield readiness, f"http://127.0.0.1:{web.port}/ready"
    web.stop()


def test_it_says_what_the_launcher_says(launcher: tuple[Readiness, str], capsys: pytest.CaptureFixture[str]) -> None:
    readiness, url = launcher
    assert main([url]) == 1
    readiness.set(True, "ready")
    assert main([url]) == 0
    readiness.set(False, "performer (pid 7) has died")
    assert main([url]) == 1
    assert capsys.readouterr().out == "503 starting\n200 ready\n503 performer (pid 7) has died\n"


def test_a_wrong_path_is_unhealthy(launcher: tuple[Readiness, str]) -> None:
    good, reason = check(launcher[1].replace("/ready", "/nothing"))
    assert not good
    assert reason.startswith("404 ")


def test_nobody_there_is_unhealthy() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        good, reason = check(f"http://127.0.0.1:{free.getsockname()[1]}/ready")
    assert not good
    assert "ConnectionRefusedError" in reason


def test_a_launcher_that_hangs_is_unhealthy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        good, reason = check(f"http://127.0.0.1:{silent.getsockname()[1]}/ready", timeout=0.2)
    assert not good
    assert "Timeout" in reason


def test_another_protocol_is_unhealthy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            connection.recv(1000)
            connection.sendall(b"220 mail.example.org ESMTP\r\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        good, reason = check(f"http://127.0.0.1:{listener.getsockname()[1]}/ready")
        thread.join()
    assert not good
    assert "BadStatusLine" in reason
