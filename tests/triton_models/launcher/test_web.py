"""Readiness and metrics over HTTP, asked politely and besieged."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from triton_models.launcher import web
from triton_models.launcher.checks import reserve_ports
from triton_models.launcher.health import DRAINING, Readiness
from triton_models.launcher.web import HealthServer
from triton_models.observability.table import LAUNCHER

pytestmark = pytest.mark.unit


@pytest.fixture
def launcher() -> Iterator[tuple[Readiness, HealthServer]]:
    readiness = Readiness()
    served = HealthServer(readiness, reserve_ports([("127.0.0.1", 0)])[0])
    yield readiness, served
    served.stop()


def get(served: HealthServer, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{served.port}{path}", timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_what_it_answers(launcher: tuple[Readiness, HealthServer]) -> None:
    readiness, served = launcher
    code, body = get(served, "/ready")
    assert (code, json.loads(body)["reason"]) == (503, "starting")
    assert get(served, "/live")[0] == 200
    readiness.set(True, "ready")
    assert json.loads(get(served, "/ready")[1])["ready"] is True
    assert get(served, "/other") == (404, "expected /ready, /live or /metrics")
    with socket.create_connection(("127.0.0.1", served.port), 10) as client:
        client.sendall(b"POST /ready HTTP/1.1\r\n\r\n")
        assert client.makefile("rb").readline().startswith(b"HTTP/1.1 405 ")


def test_every_metric_of_the_table_is_there(launcher: tuple[Readiness, HealthServer]) -> None:
    readiness, served = launcher
    readiness.blame("thinker")
    text = get(served, "/metrics")[1].splitlines()
    for spec in LAUNCHER:
        assert f"# TYPE {spec.name} {spec.kind}" in text
        assert sum(line.startswith(spec.name) for line in text) == len(spec.series)
    for line in (
        "wan_streamer_ready 0.0",
        'wan_streamer_part_up{part="thinker"} 0.0',
        'wan_streamer_part_up{part="duplex"} 1.0',
        'wan_streamer_part_faults_total{part="thinker"} 1.0',
    ):
        assert line in text
    readiness.set(True, "ready")
    assert 'wan_streamer_part_up{part="thinker"} 1.0' in get(served, "/metrics")[1]


@pytest.mark.parametrize(
    ("state", "room", "line"),
    [
        ("starting", None, "down #not ready"),
        ("ready", {"admitted": 0, "free": 5}, "up ready 5%"),
        ("ready", {"admitted": 3, "free": 2, "reserved": 1}, "up ready 5%"),
        ("ready", {"admitted": 5, "free": 0}, "up ready 0%"),
        ("ready", {"admitted": 0, "free": 999}, "up ready 256%"),
        (DRAINING, {"admitted": 3, "free": 2}, "up drain"),
        ("a part has died", {"admitted": 3, "free": 2}, "down #not ready"),
    ],
)
def test_a_balancer_hears_the_room_and_all_three_say_the_same(state: str, room: dict[str, int], line: str) -> None:
    readiness, sockets = Readiness(), reserve_ports([("127.0.0.1", 0)] * 2)
    served = HealthServer(readiness, *sockets)
    readiness.set(state == "ready", state)
    if room is not None:
        readiness.show({"duplex": {"room": {"capacity": 6, "reserved": 0, "draining": False, **room}}})
    try:
        with socket.create_connection(sockets[1].getsockname(), 10) as agent:
            assert agent.makefile("rb").read().decode() == line + "\n"
        told, metrics = json.loads(get(served, "/ready")[1])["room"], get(served, "/metrics")[1]
    finally:
        served.stop()
    takes = state == "ready" and room is not None
    assert told["free"] == (room["free"] if takes else 0)
    assert told["draining"] == (state == DRAINING)
    for name in ("free", "capacity", "reserved"):
        assert f"wan_streamer_sessions_{name} {told[name]:.1f}" in metrics.splitlines()


def test_the_silent_take_neither_threads_nor_the_answer(
    launcher: tuple[Readiness, HealthServer], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, served = launcher
    monkeypatch.setattr(web, "REQUEST_SECONDS", 60.0)
    threads = threading.active_count()
    silent = [socket.create_connection(("127.0.0.1", served.port), 10) for _ in range(4 * web.MAX_CONNECTIONS)]
    try:
        for each in silent:
            each.sendall(b"GET /ready HT")
        assert get(served, "/ready")[0] == 503
        assert threading.active_count() == threads
        assert len(served._open) <= web.MAX_CONNECTIONS
        assert not caplog.records, "and write nothing into the log"
    finally:
        for each in silent:
            each.close()


def test_the_silent_are_sent_away(launcher: tuple[Readiness, HealthServer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "REQUEST_SECONDS", 0.05)
    silent = socket.create_connection(("127.0.0.1", launcher[1].port), 10)
    with silent, contextlib.suppress(ConnectionResetError):
        assert silent.recv(1) == b""


def test_it_is_read_while_it_is_written(launcher: tuple[Readiness, HealthServer]) -> None:
    """Models come and go in the dictionary that the supervisor keeps."""
    readiness = launcher[0]
    models: dict[str, dict[str, int]] = {}
    stop = threading.Event()

    def write() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            models[f"model{turn % 97}"] = {"turn": turn}
            models.pop(f"model{(turn + 50) % 97}", None)
            readiness.show(models)
            readiness.blame("duplex")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(2000):
            assert "models" in json.loads(readiness.body())
    finally:
        stop.set()
        writer.join()
