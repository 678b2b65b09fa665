"""What rank 0 of a performer group tells every other rank, over a socket of its own: the calls of its solver, in order.

| uint32 n | n bytes of MessagePack, checked against the types below |
"""

from __future__ import annotations

import socket
import struct

import msgspec

WAIT_SECONDS = 120.0  # of either side for the other; a tick that takes ten, the launcher takes for a fault
MAX_BYTES = 64 << 20  # a unit of the largest preset has 2 MB

_LENGTH = struct.Struct("<I")
_READY = b"."


class Command(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """Packed as a list: its class, then its fields in their order."""


class Join(Command, frozen=True):
    """Become a rank: load the weights of the `engines` on `device`, and meet the others at the file `store`."""

    engines: str
    trusted_key: str
    device: str
    rank: int
    ranks: int
    store: int  # descriptor


class Prepare(Command, frozen=True):
    """Make a pool, with a name if a thinker will write to it, and a solver over it."""

    name: str
    pages: int
    page_tokens: int
    slots: int


class Rehearse(Command, frozen=True):
    """Capture the graphs of every size."""


class Put(Command, frozen=True):
    """A unit, whose arrays have the shapes that `Solver.put` says, and its place at rank 0."""

    slot: int
    x_video: bytes
    x_audio: bytes
    cos: bytes
    sin: bytes
    page_ids: bytes
    ranges: bytes


class Tick(Command, frozen=True):
    slots: list[int]
    taus: list[float]
    steps: list[float]


class Drop(Command, frozen=True):
    slot: int


class End(Command, frozen=True):
    """Leave the group together with rank 0."""


def send(to: socket.socket, command: Command) -> None:
    """OSError after WAIT_SECONDS, or if nobody is there."""
    body = msgspec.msgpack.encode(command)
    if len(body) > MAX_BYTES:
        raise ValueError(f"command: expected at most {MAX_BYTES} bytes, got {len(body)}")
    to.sendall(_LENGTH.pack(len(body)) + body)


def receive(of: socket.socket) -> Command:
    """The next command. OSError at the end of the stream, ValueError for what is no command."""
    (length,) = _LENGTH.unpack(_exactly(of, _LENGTH.size))
    if length > MAX_BYTES:
        raise ValueError(f"command: expected at most {MAX_BYTES} bytes, got {length}")
    kinds = Join | Prepare | Rehearse | Put | Tick | Drop | End
    return msgspec.msgpack.decode(_exactly(of, length), type=kinds)


def say_ready(to: socket.socket) -> None:
    to.sendall(_READY)


def wait_ready(of: socket.socket) -> None:
    """Until the other side has said so; OSError after WAIT_SECONDS, or if it ends before."""
    _exactly(of, len(_READY))


def _exactly(of: socket.socket, count: int) -> bytes:
    data = of.recv(count, socket.MSG_WAITALL)
    if len(data) < count:
        raise ConnectionError(f"expected {count} bytes, got {len(data)} and the end")
    return data
