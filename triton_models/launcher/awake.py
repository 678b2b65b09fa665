"""Keeps the processors out of sleep states while somebody talks.

Between two units a server with few sessions has nothing to do for 100 ms. The cores go to sleep, and each of a unit's
hand-overs between processes has to wake one: 0.6 ms a unit on two virtual cores (Xeon, KVM, `bench_overhead.py`).

Linux lets a process say how long waking may take, for as long as it holds a file open (PM QoS,
Documentation/power/pm_qos_interface.rst); cyclictest and JACK do the same. Zero microseconds leave only the state in
which a core polls for work. That costs power on every idle core of the machine, whoever it belongs to, and a neighbour
on the same hyperthread pair some speed: so the file is held only while a session is open.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

DEVICE = Path("/dev/cpu_dma_latency")
WAKE_UP_US = struct.pack("=i", 0)  # int32, microseconds
LINGER_SECONDS = 10.0  # after the last session: the next caller is often the same one


class KeepAwake:
    """Cores stay awake between `hold` and `release`, or in a `with` block.

    `problem` says why they do not, once `hold` has failed: without the device, or the right to write to it, every
    method does nothing. The kernel ends the request when this process ends, whatever it dies of.
    """

    def __init__(
        self,
        device: Path = DEVICE,
        linger: float = LINGER_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.problem = ""
        self._device, self._linger, self._clock = device, linger, clock
        self._file: int | None = None
        self._needed = 0.0  # when a session was seen last

    @property
    def held(self) -> bool:
        return self._file is not None

    def possible(self) -> bool:
        """Whether the device can be used; tries it. Where it cannot, `problem` says why."""
        was_held = self.held
        if self.hold() and not was_held:
            self.release()
        return not self.problem

    def hold(self) -> bool:
        """Cores stay awake from now on. False, with `problem` set, where that cannot be had."""
        if self._file is None and not self.problem:
            try:
                file = os.open(self._device, os.O_WRONLY | os.O_CLOEXEC)  # a child would hold it on after the release
                try:
                    os.write(file, WAKE_UP_US)
                except BaseException:
                    os.close(file)
                    raise
                self._file = file
            except OSError as error:
                self.problem = f"{self._device}: {error.strerror}"
        return self.held

    def release(self) -> None:
        """Cores may sleep again. Safe to call twice."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def follow(self, sessions: int) -> None:
        """Call it a few times a second with the number of open sessions: holds while there are any, and `linger`
        seconds longer."""
        now = self._clock()
        if sessions > 0:
            self._needed = now
            self.hold()
        elif self.held and now - self._needed >= self._linger:
            self.release()

    def __enter__(self) -> KeepAwake:
        self.hold()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
