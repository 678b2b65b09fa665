"""The way of a hand-over from the thinker to the performer: one packet over a Unix socket beside the KV pool.

A BLS call would take the thinker's answer through Triton to the duplex model, and its next call through Triton to the
performer: 1 ms in which no engine works. The packet needs a tenth of that. It says where the K/V is, not what it is:
pages travel by the KV link, and those it names are written before it is sent.

The socket is a file of /dev/shm named after the pool, readable by its owner alone; it goes with the server's other
shared memory. A packet that cannot be sent (nobody listens yet, the buffer is full, the history is too long for one
packet) is no loss: the thinker's answer says so, and the duplex model makes the call.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import threading
import time
from collections.abc import Callable

import numpy as np

from . import wire
from .kv_pool import SHM_DIRECTORY
from .messages import HandOver

MAX_PACKET = 2**18  # bytes; the kernel's default buffers carry about 200 kB, the page table of an hour
RETRY_SECONDS = 1.0  # after a failed connection
STOP_SECONDS = 2.0

_log = logging.getLogger(__name__)


def socket_path(pool: str) -> str:
    """Where the performer of a KV pool listens."""
    return str(SHM_DIRECTORY / f"{pool}.ho")


class HandOverSender:
    """The thinker's end. One thread calls it."""

    def __init__(self, pool: str) -> None:
        self._path = socket_path(pool)
        self._socket: socket.socket | None = None
        self._retry_at = 0.0

    def send(self, handed: HandOver) -> bool:
        """Sends one packet without waiting; False if that is not possible now. Never raises."""
        try:
            link = self._socket or self._connect()
            if link is None:
                return False
            link.send(wire.encode(handed).data, socket.MSG_DONTWAIT)
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

    def _connect(self) -> socket.socket | None:
        if time.monotonic() < self._retry_at:
            return None
        self._retry_at = time.monotonic() + RETRY_SECONDS
        link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            link.connect(self._path)
        except OSError as error:
            link.close()
            _log.info("hand-over: nobody listens at %s yet (%s)", self._path, error)
            return None
        self._socket = link
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
        buffer = bytearray(MAX_PACKET)
        while not self._stopping:
            try:
                size = link.recv_into(buffer)
            except OSError:
                return
            if size == 0:
                return
            try:
                handed = wire.decode(np.frombuffer(buffer, np.uint8, size).copy())
                if not isinstance(handed, HandOver):
                    raise wire.WireError(f"message: expected a HandOver, got {type(handed).__name__}")
                self._take(handed)
            except Exception:  # one bad packet is one unit that stalls and ends its session
                _log.exception("hand-over: a packet could not be used")
