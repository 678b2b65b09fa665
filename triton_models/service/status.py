"""How a model process tells the launcher that it lives, and how the launcher tells it to stop taking units.

Each process replaces its status file a few times a second. A file that stops changing means a process that hangs or
has died: Triton itself reports neither. The launcher's notice goes the other way, through a file in the same directory.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

BEAT_SECONDS = 0.25
NOTICE = "notice.json"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Notice:
    """drain: answer what was asked and take no more. abandon: end everything now, a part of the server is dead."""

    kind: Literal["drain", "abandon"]
    reason: str


class Heartbeat:
    """Writes `directory/name.json` = {"pid", "beat", ..snapshot()} of each part every BEAT_SECONDS from a thread of its
    own, and calls `also`.

    `beat` is `time.monotonic()`. A snapshot that raises stops the beat: what cannot describe itself is out of order. A
    disk that is full does not: the next beat may find room.
    """

    def __init__(
        self,
        directory: Path,
        snapshots: Mapping[str, Callable[[], Mapping[str, Any]]],
        also: Callable[[], None] = lambda: None,
    ) -> None:
        self._snapshots = {directory / f"{name}.json": snapshot for name, snapshot in snapshots.items()}
        self._also = also
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._write()
        self._thread.start()

    def stop(self) -> None:
        """Ends the beat and removes the files."""
        self._stop.set()
        self._thread.join(2.0)
        for path in self._snapshots:
            path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            try:
                self._write()
                self._also()
            except Exception:
                _log.exception("the heartbeat stops")
                return

    def _write(self) -> None:
        for path, snapshot in self._snapshots.items():
            status = {**snapshot(), "pid": os.getpid(), "beat": time.monotonic()}
            try:
                replace_json(path, status)
            except OSError as error:
                _log.warning("a status was not written: %s", error)


def read_status(directory: Path, name: str) -> dict[str, Any] | None:
    """The last status of a process; None if there is none."""
    return _read_json(directory / f"{name}.json")


def write_notice(directory: Path, notice: Notice) -> None:
    replace_json(directory / NOTICE, asdict(notice))


def read_notice(directory: Path) -> Notice | None:
    data = _read_json(directory / NOTICE)
    return None if data is None else Notice(**data)


def replace_json(path: Path, data: object) -> None:
    """Writes a file that a reader sees either as it was or complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(data))
    temporary.replace(path)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
