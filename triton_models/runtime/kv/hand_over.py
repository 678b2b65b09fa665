"""The way of a hand-over from the thinker to the performer: one packet over a Unix socket beside the KV pool.

A BLS call would take the thinker's answer through Triton to the duplex model, and its next call through Triton to the
performer: 1 ms in which no engine works. The packet needs a tenth of that. It says where the K/V is, not what it is:
pages travel by the KV link, and those it names are written before it is sent.

The socket is a file of /dev/shm named after the pool, readable by its owner alone; it goes with the server's other
shared memory. A packet that cannot be sent (nobody listens yet, the buffer is full, the history is too long for one
packet) is no loss: the thinker's answer says so, and the duplex model makes the call.

Linux takes a write to a socket for a sign that the writer is about to sleep (WF_SYNC) and may queue the reader on the
writer's core. So the thinker also passes an eventfd when it connects, whose wake-up means "now", and the receiver
sleeps on that: 0.21 ms from the packet to the receiver's first line instead of 0.26, in one run each.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable

import numpy as np

from ..messages import HandOver, HistoryView
from .pool import SHM_DIRECTORY

MAX_PACKET = 2**18  # bytes; the kernel's default buffers carry about 200 kB, the page table of an hour
HELLO = b"wst"  # the packet that carries the eventfd
RETRY_SECONDS = 1.0  # after a failed connection
STOP_SECONDS = 2.0

_HEAD = struct.Struct("<qqQqqQ")  # epoch, unit, seed, origin, sent_ns, number of pages

_log = logging.getLogger(__name__)


def socket_path(pool: str) -> str:
    """Where the performer of a KV pool listens."""
    return str(SHM_DIRECTORY / f"{pool}.ho")


def pack(handed: HandOver) -> bytes:
    """A packet: fixed numbers, page_ids, ranges, the session's name. A third of the time of `wire.encode`."""
    h, view, name = handed, handed.history, handed.session.encode()
    head = _HEAD.pack(h.epoch, h.unit, h.seed, h.origin, h.sent_ns, len(view.page_ids))
    return b"".join((head, view.page_ids.tobytes(), view.ranges.tobytes(), name))


def unpack(packet: bytes) -> HandOver:
    """The HandOver of a packet; its arrays are read-only views. Raises ValueError for one that `pack` did not make."""
    if len(packet) < _HEAD.size:
        raise ValueError(f"packet: expected at least {_HEAD.size} bytes, got {len(packet)}")
    epoch, unit, seed, origin, sent_ns, pages = _HEAD.unpack_from(packet)
    ranges_at, name_at = _HEAD.size + 8 * pages, _HEAD.size + 24 * pages
    if len(packet) < name_at:
        raise ValueError(f"packet: expected {name_at} bytes for {pages} pages, got {len(packet)}")
    ids = np.frombuffer(packet, np.int64, pages, _HEAD.size)
    ranges = np.frombuffer(packet, np.int64, 2 * pages, ranges_at).reshape(pages, 2)
    return HandOver(packet[name_at:].decode(), epoch, unit, seed, origin, HistoryView(ids, ranges), sent_ns)


class HandOverSender:
    """The thinker's end. One thread calls it."""

    def __init__(self, pool: str) -> None:
        self._path = socket_path(pool)
        self._socket: socket.socket | None = None
        self._bell = -1  # of the connection
        self._retry_at = 0.0

    def send(self, handed: HandOver) -> bool:
        """Sends one packet without waiting; False if that is not possible now. Never raises."""
        try:
            link = self._socket or self._connect()
            if link is None:
                return False
            link.send(pack(handed), socket.MSG_DONTWAIT)
            os.eventfd_write(self._bell, 1)
            return True
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EMSGSIZE, errno.ENOBUFS):
                _log.warning("hand-over: the performer has gone (%s)", error)
                self.close()
            return False

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            os.close(self._bell)

    def _connect(self) -> socket.socket | None:
        if time.monotonic() < self._retry_at:
            return None
        self._retry_at = time.monotonic() + RETRY_SECONDS
        link, bell = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET), os.eventfd(0, os.EFD_CLOEXEC)
        try:
            link.connect(self._path)
            socket.send_fds(link, [HELLO], [bell])
        except OSError as error:
            link.close()
            os.close(bell)
            _log.info("hand-over: nobody listens at %s yet (%s)", self._path, error)
            return None
        self._socket, self._bell = link, bell
        return link


class HandOverReceiver:
    """The performer's end: a thread that gives each packet to `take`, from `start` to `stop`."""

    def __init__(self, pool: str, take: Callable[[HandOver], None]) -> None:
        """Raises OSError if the socket cannot be made."""
        self._path, self._take = socket_path(pool), take
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)  # of a performer that was killed
        self._listener.bind(self._path)
        os.chmod(self._path, 0o600)
        self._listener.listen(1)
        self._link: socket.socket | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="hand-over", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread and removes the socket."""
        self._stopping = True
        for end in (self._listener, self._link):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def _run(self) -> None:
        while not self._stopping:
            try:
                link, _ = self._listener.accept()
            except OSError:
                return
            self._link = link
            with link:
                self._receive(link)

    def _receive(self, link: socket.socket) -> None:
        """Until the thinker is gone."""
        _, bells, _, _ = socket.recv_fds(link, len(HELLO), 1)
        if not bells:
            _log.warning("hand-over: a connection without an eventfd is no thinker's")
            return
        try:
            sleep = select.poll()
            sleep.register(bells[0], select.POLLIN)
            sleep.register(link, 0)  # its end is told in any case
            buffer = bytearray(MAX_PACKET)
            while not self._stopping:
                rung = dict(sleep.poll())
                if bells[0] in rung:
                    os.eventfd_read(bells[0])
                while self._take_one(link, buffer):
                    pass
                if link.fileno() in rung:
                    return
        finally:
            os.close(bells[0])

    def _take_one(self, link: socket.socket, buffer: bytearray) -> bool:
        """False if no packet is there."""
        try:
            size = link.recv_into(buffer, 0, socket.MSG_DONTWAIT)
        except OSError:
            return False
        if size == 0:
            return False
        try:
            self._take(unpack(bytes(memoryview(buffer)[:size])))
        except Exception:  # one bad packet is one unit that stalls and ends its session
            _log.exception("hand-over: a packet could not be used")
        return True
