"""Who takes more of the gRPC port than a client may. Triton sets no limit there: it keeps every answer that is not
read, and takes as many starts as come.

The launcher reads the kernel's counters of each connection (TCP_INFO) on a copy of tritonserver's socket that is closed
at once (pidfd_getfd(2)). Whoever breaks a rule is cut off: its streams end, as if it had gone away, and so do their
sessions; all others go on. A client may come again, after a flood not at once (`door.py`).

    unread   for UNREAD_SECONDS it has sent on and taken no answer
    flood    all together send more than twice what the server's sessions send in real time: the greediest goes, one a
             look, and the port is shut for its address: a second, and longer each time that it goes on. Who shares an
             address is one client, but for the programs of this machine, among them the launcher.
    crowd    more connections than there are descriptors for: the longest silent go
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import socket
import struct
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from . import door

Rule = Literal["unread", "flood", "crowd"]
RULES: tuple[Rule, ...] = ("unread", "flood", "crowd")

LOOK_SECONDS = 0.25
HURRY_SECONDS, HURRIES = 0.04, 10.0  # between two looks, for so long after a flood: whoever floods comes again
SHUT_SECONDS = 1.0, 2.0, 4.0, 8.0  # for an address that floods again within HURRIES of the door's opening
HERE_SHUT_SECONDS = 0.1  # for programs of this machine: most newcomers never meet it, the rest wait 1 s
MOST_SHUT = 64  # addresses; the first goes
UNREAD_SECONDS = 5.0  # two units of a session wait in health, and an honest client waits with them
UNITS_PER_SECOND = 6.25
AHEAD_UNITS = 8  # that a session may be early, which is a burst
FLOOD = 2.0  # times real time

_GETFD = 438  # the number of pidfd_getfd on all architectures
_BYTES = struct.Struct("120xQQ")  # of struct tcp_info: bytes_acked, bytes_received
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class _Shut:
    until: float = 0.0
    times: int = 0  # in a row


@dataclass(eq=False)
class _Seen:
    """A connection as it was at the last look."""

    peer: str
    here: bool = False  # it comes from this machine, to the same address
    received: int = 0
    grown: int = 0  # received between the last two looks
    taken: int = 0  # of what the server sent, when it last took an answer
    asked: int = 0  # received by then
    sending: float = 0.0  # seconds in which it sent something, since then
    heard: float = 0.0  # when it last sent something
    over: bool = False  # it was cut off, and has not gone yet


class Connections:
    """Watches the connections to one port. Not thread-safe: the supervisor's thread alone looks."""

    def __init__(self, port: int, unit_bytes: int, sessions: int, clock: Callable[[], float] = time.monotonic) -> None:
        """unit_bytes: of one unit, either way.  sessions: that talk at once at most."""
        self.ended: Counter[Rule] = Counter()
        self.problem: str | None = None  # why nobody can be watched
        self._port, self._unit, self._clock = port, unit_bytes, clock
        self._rate = FLOOD * sessions * UNITS_PER_SECOND * unit_bytes  # bytes a second
        self._burst = self._rate + FLOOD * sessions * AHEAD_UNITS * unit_bytes
        self._least = 2 * sessions * unit_bytes  # after a flood: what all may send at once
        self._left, self._looked = self._burst, clock()
        self._hurries = 0.0  # until then it looks more often
        self._most = max(64, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self._seen: dict[str, _Seen] = {}
        self._shut: dict[str, _Shut] = {}  # by address
        self._known: tuple[int, frozenset[str]] | None = None  # what the listening sockets of which process were told

    @property
    def pause(self) -> float:
        """Until the next look."""
        return HURRY_SECONDS if self._clock() < self._hurries else LOOK_SECONDS

    def look(self, pid: int) -> list[str]:
        """One look at the process that serves the port, at most every `pause` seconds; who was cut off, in words."""
        now = self._clock()
        passed = now - self._looked
        if passed < self.pause or self.problem is not None:
            return []
        self._looked, seen = now, {}
        ended: dict[str, Rule] = {}
        try:
            for inode, connection in _sockets(pid, self._port):
                peer, own = connection.getpeername()[0], connection.getsockname()[0]
                state = self._seen.get(inode) or _Seen(peer.removeprefix("::ffff:"), here=peer == own, heard=now)
                seen[inode] = state
                if state.over:
                    continue
                acked, received = _BYTES.unpack(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES.size))
                self._count(state, acked, received, now, passed)
                # Who asks for small things (is it ready?) gets small answers, about as large as the questions.
                small = acked - state.taken >= (received - state.asked) // 5
                if state.sending >= UNREAD_SECONDS and not small:
                    ended[inode] = "unread"
            self._seen = seen
            active = {inode: state for inode, state in seen.items() if not state.over}
            ended |= self._crowd(active) | self._flood(active, passed)
            self._tell_door(pid)
            return self._cut(pid, ended) if ended else []
        except PermissionError as error:
            self.problem = f"{error.strerror}: clients that flood or never read are not cut off"
            return [f"connections cannot be watched ({self.problem}); a container needs the capability SYS_PTRACE"]
        except OSError:  # the process or the connection has ended meanwhile
            return []

    # -- the rules ---------------------------------------------------------------------------------------------
    def _count(self, state: _Seen, acked: int, received: int, now: float, passed: float) -> None:
        state.grown, state.received = received - state.received, received
        if state.grown:
            state.heard = now
            state.sending += min(passed, LOOK_SECONDS)  # a look may be late: the first, or on a starved machine
        if acked - state.taken >= self._unit // 2:  # less is no answer: refusals, acknowledgements of HTTP/2
            state.taken, state.asked, state.sending = acked, received, 0.0

    def _flood(self, active: dict[str, _Seen], passed: float) -> dict[str, Rule]:
        groups: dict[str, list[str]] = defaultdict(list)
        for inode, state in active.items():
            groups[inode if state.here else state.peer].append(inode)
        grown = {name: sum(active[inode].grown for inode in group) for name, group in groups.items()}
        self._left = min(self._burst, self._left + passed * self._rate) - sum(grown.values())
        if self._left >= 0:
            return {}
        self._left, self._hurries = self._least, self._looked + HURRIES
        greediest = groups[max(grown, key=grown.__getitem__)]
        self._shut_for(active[greediest[0]])
        return dict.fromkeys(greediest, "flood")

    def _shut_for(self, flooding: _Seen) -> None:
        shut = self._shut.pop(flooding.peer, _Shut())
        longer = SHUT_SECONDS[min(shut.times, len(SHUT_SECONDS) - 1)]
        seconds = HERE_SHUT_SECONDS if flooding.here else longer
        self._shut[flooding.peer] = _Shut(self._looked + seconds, shut.times + 1)
        while len(self._shut) > MOST_SHUT:
            del self._shut[next(iter(self._shut))]

    def _tell_door(self, pid: int) -> None:
        """Lets the listening sockets know for whom they are shut now."""
        self._shut = {peer: shut for peer, shut in self._shut.items() if self._looked < shut.until + HURRIES}
        shut = frozenset(peer for peer, shut in self._shut.items() if self._looked < shut.until)
        if self._known != (pid, shut) and (shut or self._known is not None):
            self._known = pid, shut
            with contextlib.suppress(OSError):  # a kernel that takes no filter: who floods is cut off all the same
                door.shut((listener for _, listener in _sockets(pid, self._port, listening=True)), shut)

    def _crowd(self, active: dict[str, _Seen]) -> dict[str, Rule]:
        surplus = max(0, len(active) - self._most)
        silent = sorted(active, key=lambda inode: active[inode].heard)
        return dict.fromkeys(silent[:surplus], "crowd")

    def _cut(self, pid: int, ended: dict[str, Rule]) -> list[str]:
        cut: Counter[tuple[Rule, str]] = Counter()
        for inode, connection in _sockets(pid, self._port):
            if rule := ended.get(inode):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                self._seen[inode].over = True
                cut[rule, self._seen[inode].peer] += 1
                self.ended[rule] += 1
        return [f"{count} connections of {peer} cut off: {rule}" for (rule, peer), count in cut.items()]


def _sockets(pid: int, port: int, listening: bool = False) -> Iterator[tuple[str, socket.socket]]:
    """Copies of a process's connections to its `port`, or of those that listen there, by inode; each is closed when the
    next is asked for.

    PermissionError where this process may not have them.
    """
    pidfd = os.pidfd_open(pid)
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                inode = os.readlink(f"/proc/{pid}/fd/{name}")
            except FileNotFoundError:
                continue
            if not inode.startswith("socket:"):
                continue
            fd = _libc.syscall(_GETFD, pidfd, int(name), 0)
            if fd < 0:
                if ctypes.get_errno() in (1, 38):  # EPERM, ENOSYS
                    raise PermissionError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
                continue
            with socket.socket(fileno=fd) as connection:
                if connection.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                if _listens(connection, port) if listening else _connected(connection, port):
                    yield inode, connection
    finally:
        os.close(pidfd)


def _listens(listener: socket.socket, port: int) -> bool:
    listens = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    return bool(listens) and listener.getsockname()[1] == port


def _connected(connection: socket.socket, port: int) -> bool:
    try:
        connection.getpeername()
        return connection.getsockname()[1] == port
    except OSError:  # it listens, or its end is being cleared up
        return False
