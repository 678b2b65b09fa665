"""How a model process tells the launcher that it lives, and how the launcher tells it to stop taking units.

Each process writes its record a few times a second, in a private directory of shared memory. A record that stops
changing means a process that hangs or has died: Triton itself reports neither. The launcher's notice goes the other
way.

A record is a file of fixed size that is written in place, so that neither a full disk nor a full /dev/shm can stop the
beat of a process in health; a checksum tells the reader that came in mid-write.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import logging
import os
import signal
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

BEAT_SECONDS = 0.25
TRIM_SECONDS = 60.0  # between two returns of freed memory, or units and sessions of all sizes scatter it ever further
NOTICE = "notice"
RECORD_BYTES = 16_384

_log = logging.getLogger(__name__)
_trim: Callable[[int], int] = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)  # glibc's alone


@dataclass(frozen=True)
class Notice:
    """drain: take no new sessions, end those that are open after `seconds`. abandon: end everything now, a part of the
    server is dead."""

    kind: Literal["drain", "abandon"]
    reason: str
    seconds: float = 0.0


class Record:
    """One JSON object in a file of `RECORD_BYTES`. OSError where there is no room for that."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        os.posix_fallocate(self._file, 0, RECORD_BYTES)

    def write(self, data: Mapping[str, Any]) -> None:
        body = json.dumps(data).encode()
        text = b"%d %d %s" % (zlib.crc32(body), len(body), body)
        if len(text) > RECORD_BYTES:
            raise ValueError(f"{self._path}: expected a record of at most {RECORD_BYTES} bytes, got {len(text)}")
        os.pwrite(self._file, text, 0)

    def close(self) -> None:
        os.close(self._file)


class Heartbeat:
    """Writes {"pid", "beat", ..snapshot()} to the record of each part every BEAT_SECONDS from a thread of its own, and
    calls `also`.

    `beat` is `time.monotonic()`. A snapshot that raises stops the beat: what cannot describe itself is out of order; a
    write that fails does not. The thread looks for garbage and gives freed memory back to the system, and ends this
    process when its parent is gone (killed, so that nobody told it), which Triton's own stub may not live up to while
    threads of ours wait for an answer. (A launcher's server has a guard besides, `launcher/child.py`: this thread comes
    to nothing where another waits for the dead parent and keeps the interpreter's lock.)
    """

    def __init__(
        self,
        directory: Path,
        snapshots: Mapping[str, Callable[[], Mapping[str, Any]]],
        also: Callable[[], None] = lambda: None,
    ) -> None:
        self._directory, self._snapshots, self._also = directory, snapshots, also
        self._parent = os.getppid()
        self._records: dict[str, Record] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        for name, snapshot in self._snapshots.items():
            self._records[name] = Record(self._directory / name)
            self._records[name].write(_status(snapshot))
        self._thread.start()

    def stop(self) -> None:
        """Ends the beat and removes the records."""
        self._stop.set()
        self._thread.join(2.0)
        for record in self._records.values():
            record.close()
        for name in self._records:
            with contextlib.suppress(OSError):
                (self._directory / name).unlink()

    def _beat(self) -> None:
        complained, trimmed = False, time.monotonic()
        while not self._stop.wait(BEAT_SECONDS):
            if time.monotonic() - trimmed >= TRIM_SECONDS:
                trimmed = time.monotonic()
                gc.collect()
                _trim(0)
            if os.getppid() != self._parent:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                said = {name: _status(snapshot) for name, snapshot in self._snapshots.items()}
                self._also()
            except Exception:
                _log.exception("the heartbeat stops")
                return
            try:
                for name, status in said.items():
                    self._records[name].write(status)
            except (OSError, ValueError) as error:
                if not complained:
                    _log.error("%s: a beat could not be written (%s); the next one may", self._directory, error)
                complained = True


def _status(snapshot: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    return {**snapshot(), "pid": os.getpid(), "beat": time.monotonic()}


def read_status(directory: Path, name: str) -> dict[str, Any] | None:
    """The last status of a process; None if there is none, or none that is whole."""
    return _read(directory / name)


def prepare(directory: Path) -> None:
    """Makes the private directory of the records, with room for a notice. OSError if it is there already."""
    directory.mkdir(mode=0o700)
    Record(directory / NOTICE).close()


def write_notice(directory: Path, notice: Notice) -> None:
    record = Record(directory / NOTICE)
    record.write(asdict(notice))
    record.close()


def read_notice(directory: Path) -> Notice | None:
    data = _read(directory / NOTICE)
    return None if data is None else Notice(**data)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        checksum, length, rest = path.read_bytes().split(b" ", 2)
        body = rest[: int(length)]
        return json.loads(body) if zlib.crc32(body) == int(checksum) else None
    except (OSError, ValueError):
        return None
