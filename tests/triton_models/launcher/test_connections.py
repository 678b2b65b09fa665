"""Who takes more of the port than a client may is cut off, and nobody else: real sockets, a clock of the test's own."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from triton_models.launcher import connections
from triton_models.launcher.connections import (
    HERE_SHUT_SECONDS,
    HURRIES,
    HURRY_SECONDS,
    LOOK_SECONDS,
    SHUT_SECONDS,
    UNREAD_SECONDS,
    Connections,
)

pytestmark = pytest.mark.unit
UNIT = 1000


@dataclass
class Port:
    """A listening port of this process, which is watched as a server's is."""

    listener: socket.socket
    now: float = 0.0
    pairs: list[tuple[socket.socket, socket.socket]] = field(default_factory=list)
    watch: Connections | None = None

    def connect(self, address: str = "127.0.0.1") -> tuple[socket.socket, socket.socket]:
        """Client's and server's end."""
        client = socket.create_connection(self.listener.getsockname(), source_address=(address, 0))
        self.pairs.append((client, self.listener.accept()[0]))
        return self.pairs[-1]

    def is_shut(self, address: str) -> bool:
        """Whether who comes from there is left waiting."""
        try:
            socket.create_connection(self.listener.getsockname(), 0.1, source_address=(address, 0)).close()
        except TimeoutError:
            return True
        self.listener.accept()[0].close()
        return False

    def look(self, after: float = LOOK_SECONDS) -> list[str]:
        assert self.watch is not None
        self.now += after
        time.sleep(0.01)  # loopback acknowledges
        return self.watch.look(os.getpid())


@pytest.fixture
def port() -> Iterator[Port]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = Port(listener)
        port.watch = Connections(listener.getsockname()[1], UNIT, sessions=2, clock=lambda: port.now)
        yield port
        for pair in port.pairs:
            for end in pair:
                end.close()


def is_open(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        while part := client.recv(65_536):
            assert part
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        client.setblocking(True)


TURNS = round(UNREAD_SECONDS / LOOK_SECONDS)


def test_who_sends_on_and_takes_no_answer_is_cut_off(port: Port) -> None:
    reader, mute, waiting, prober = (port.connect() for _ in range(4))
    waiting[0].send(bytes(2 * UNIT))  # and no more, until it has an answer
    said: list[str] = []
    for _ in range(TURNS):
        for client, _ in (reader, mute):
            client.send(bytes(UNIT // 2))
        reader[1].send(bytes(UNIT))
        mute[1].send(bytes(20))  # acknowledgements of HTTP/2 are no answer
        prober[0].send(bytes(20))
        prober[1].send(bytes(10))
        said += port.look()
    assert said == ["1 connections of 127.0.0.1 cut off: unread"]
    assert [is_open(client) for client, _ in (reader, mute, waiting, prober)] == [True, False, True, True]
    assert port.watch is not None
    assert port.watch.ended == {"unread": 1}


def test_a_look_that_comes_late_blames_nobody(port: Port) -> None:
    """The first comes when the server has started, which may take a minute."""
    port.now += 10 * UNREAD_SECONDS
    client, _ = port.connect()
    client.send(bytes(UNIT))
    assert port.look() == []
    assert is_open(client)


def test_a_flood_ends_the_greediest_and_not_its_neighbour(port: Port) -> None:
    usual, greedy = port.connect(), port.connect()
    said: list[str] = []
    for _ in range(8):
        usual[0].send(bytes(3 * UNIT))
        usual[1].send(bytes(3 * UNIT))
        if not said:
            greedy[0].send(bytes(60 * UNIT))
            greedy[1].recv(60 * UNIT)
        usual[1].recv(3 * UNIT)
        said += port.look()
    assert said == ["1 connections of 127.0.0.1 cut off: flood"]
    assert [is_open(client) for client, _ in (usual, greedy)] == [True, False]


def flood(port: Port, address: str) -> list[str]:
    client, server = port.connect(address)
    client.send(bytes(120 * UNIT))
    server.recv(120 * UNIT)
    return port.look(LOOK_SECONDS)


def test_who_floods_again_waits_longer(port: Port) -> None:
    """Its SYNs are dropped in the kernel; other addresses come in as ever."""
    there, address = port.connect("127.0.0.3"), "127.0.0.2"
    port.look()
    assert flood(port, address) == [f"1 connections of {address} cut off: flood"]
    for seconds in SHUT_SECONDS:
        port.look(seconds - 0.1)
        assert port.is_shut(address)
        assert not port.is_shut("127.0.0.3")
        port.look(0.2)
        assert not port.is_shut(address)
        assert flood(port, address) == [f"1 connections of {address} cut off: flood"]
    port.look(HURRIES + SHUT_SECONDS[-1] + 1)
    assert not port.is_shut(address)
    flood(port, address)
    port.look(SHUT_SECONDS[0] + 0.1)
    assert not port.is_shut(address), "forgotten"
    assert is_open(there[0])


def test_programs_of_this_machine_wait_a_moment_for_one_that_floods(port: Port) -> None:
    """They share an address."""
    honest = port.connect()
    assert flood(port, "127.0.0.1")
    assert port.is_shut("127.0.0.1")
    port.look(HERE_SHUT_SECONDS + 0.1)
    assert not port.is_shut("127.0.0.1")
    assert is_open(honest[0])


def test_where_the_kernel_takes_no_filter_who_floods_is_cut_off(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(92, "Protocol not available")

    monkeypatch.setattr(connections.door, "shut", refused)
    assert flood(port, "127.0.0.2") == ["1 connections of 127.0.0.2 cut off: flood"]


def test_after_a_flood_nobody_is_blamed_for_a_unit(port: Port) -> None:
    """However soon the next look comes, and all sessions at once."""
    honest = [port.connect() for _ in range(2)]
    port.look()
    assert flood(port, "127.0.0.2")
    for client, _ in honest:
        client.send(bytes(2 * UNIT))
    assert port.look(HURRY_SECONDS) == []


def test_too_many_connections_end_the_longest_silent(port: Port) -> None:
    assert port.watch is not None
    port.watch._most = 3
    clients = [port.connect() for _ in range(3)]
    assert port.look() == []
    for client, _ in clients[1:]:
        client.send(b"x")
    port.look()
    clients.append(port.connect())
    assert port.look() == ["1 connections of 127.0.0.1 cut off: crowd"]
    assert [is_open(client) for client, _ in clients] == [False, True, True, True]


def test_where_sockets_cannot_be_had_it_is_said_once(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> Iterator[tuple[str, socket.socket]]:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(connections, "_sockets", refused)
    [said] = port.look()
    assert "SYS_PTRACE" in said
    assert port.look() == []


@pytest.mark.parametrize("end", [lambda port: port.pairs[0][1].close(), lambda port: None])
def test_a_server_that_has_gone_is_no_fault(port: Port, end: Callable[[Port], None]) -> None:
    port.connect()
    end(port)
    assert port.look() == []
    assert port.watch is not None
    port.now += LOOK_SECONDS
    assert port.watch.look(2**22 - 1) == [], "no such process"
