"""A port that is shut for some addresses, for a while: who is there stays, who comes waits outside.

A filter of the kernel's (classic BPF) on the listening socket drops what these addresses send to it, which is how a
connection begins. It needs no privilege, it costs the server nothing, and clients try again by themselves (their kernel
after 1 s, 2 s, ..). Connections get a copy of the filter that was there when they came; it is no matter to them, for
their own address was not in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import socket
import struct
from collections.abc import Collection, Iterable

SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
_INSTRUCTION = struct.Struct("=HBBI")  # code, jump if true, jump if false, operand
_IP = 0xFFF00000  # where a packet's IP header lies (SKF_NET_OFF)
_LOAD_BYTE, _LOAD, _AND, _EQUAL, _JUMP, _RETURN = 0x30, 0x20, 0x54, 0x15, 0x05, 0x06
_KEEP, _DROP = (_RETURN, 0, 0, 0xFFFFFFFF), (_RETURN, 0, 0, 0)


def shut(listeners: Iterable[socket.socket], addresses: Collection[str]) -> None:
    """Shuts these sockets for `addresses` and opens them for all others. OSError where the kernel takes no filter."""
    program = b"".join(_INSTRUCTION.pack(*each) for each in _program(addresses))
    kept = ctypes.create_string_buffer(program, len(program))
    for listener in listeners:
        if addresses:
            argument = struct.pack("@HP", len(program) // _INSTRUCTION.size, ctypes.addressof(kept))
            listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, argument)
        else:
            with contextlib.suppress(FileNotFoundError):  # it has none
                listener.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)


def _program(addresses: Collection[str]) -> list[tuple[int, int, int, int]]:
    v4, v6 = [], []
    for address in addresses:
        packed = ipaddress.ip_address(address).packed
        words = struct.unpack(f"!{len(packed) // 4}I", packed)
        at, rules = (12, v4) if len(words) == 1 else (8, v6)
        for number, word in enumerate(words):
            left = 2 * (len(words) - number) - 1
            rules += [(_LOAD, 0, 0, _IP + at + 4 * number), (_EQUAL, 0, left, word)]
        rules.append(_DROP)
    v4.append(_KEEP)
    version = [(_LOAD_BYTE, 0, 0, _IP), (_AND, 0, 0, 0xF0), (_EQUAL, 1, 0, 0x40), (_JUMP, 0, 0, len(v4))]
    return [*version, *v4, *v6, _KEEP]
