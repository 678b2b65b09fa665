"""The other ranks of a performer group, as rank 0 holds them: child processes that follow its commands.

Rank 0 lives in the performer's stage and alone knows units, deadlines and sessions. Whichever side dies, the other
notices by the end of their socket: a rank then ends at once, and rank 0 has a `fault`, for which the launcher starts
the server anew.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from engine_builder.config import ModelConfig
from triton_models.runtime.engines.devices import CPU
from triton_models.runtime.engines.engine import EngineError

from .commands import WAIT_SECONDS, Command, End, Join, Prepare, send, wait_ready
from .ulysses import Ulysses, join

TREE = Path(__file__).parents[4]  # where this package lies
FOLLOWER = "triton_models.gpu.torch_cuda.group.follower"
END_SECONDS = 5.0


@dataclass(frozen=True)
class _Rank:
    number: int
    socket: socket.socket
    process: subprocess.Popen[Any]

    @classmethod
    def start(cls, number: int, store: int) -> _Rank:
        ours, theirs = socket.socketpair()
        with theirs:
            environment = {**os.environ, "PYTHONPATH": str(TREE)}
            process = subprocess.Popen(
                [sys.executable, "-m", FOLLOWER], stdin=theirs.fileno(), env=environment, pass_fds=(store,), cwd="/"
            )
        ours.settimeout(WAIT_SECONDS)
        return cls(number, ours, process)

    def __str__(self) -> str:
        return f"rank {self.number} of the performer group (pid {self.process.pid})"


class Ranks:
    """Ranks 1 to N - 1 of a group of N, from their start to `close`; this process is rank 0."""

    def __init__(
        self, engine_dir: Path, config: ModelConfig, devices: Sequence[str], trusted_key: Path | None = None
    ) -> None:
        """devices: of all ranks, as `Devices` names them. Raises EngineError."""
        place = torch.device(CPU if devices[0] == CPU else f"cuda:{devices[0]}")
        # A file without a name: nobody else finds it. It stays open, for torch opens it again when the group is freed.
        store = os.memfd_create("wst-group", os.MFD_CLOEXEC)
        self._fault = ""
        self._ranks: list[_Rank] = []
        try:
            self._ranks += [_Rank.start(number, store) for number in range(1, len(devices))]
            directory, key = str(engine_dir.resolve()), str(trusted_key.resolve()) if trusted_key else ""
            for rank, device in zip(self._ranks, devices[1:], strict=True):
                self._tell(rank, Join(directory, key, device, rank.number, len(devices), store))
            self._wait_ready()
            self.exchange = Ulysses(config, join(place, store, 0, len(devices)), place)
        except BaseException:
            self.close()
            raise

    def prepare(self, pool: str, pages: int, page_tokens: int, slots: int) -> None:
        """Returns when every rank has a pool and a solver. Raises EngineError."""
        self.tell(Prepare(pool, pages, page_tokens, slots))
        self._wait_ready()

    def tell(self, command: Command) -> None:
        """Raises EngineError if a rank does not take it."""
        for rank in self._ranks:
            self._tell(rank, command)

    def fail(self, fault: str) -> None:
        """The ranks are out of step: nothing can be solved any more."""
        self._fault = self._fault or fault

    def fault(self) -> str:
        """What is wrong, or nothing. From any thread."""
        for rank in self._ranks:
            if (code := rank.process.poll()) is not None:
                return f"{rank} has ended with {code}"
        return self._fault

    def close(self) -> None:
        """Ends the ranks and leaves the group; may be called twice."""
        fault, ranks, self._ranks = self.fault(), self._ranks, []
        for rank in ranks:
            with contextlib.suppress(OSError):
                if not fault:
                    send(rank.socket, End())
        if dist.is_initialized() and (not fault or dist.get_backend() == "gloo"):  # NCCL would wait for the dead
            dist.destroy_process_group()
        for rank in ranks:
            with contextlib.suppress(subprocess.TimeoutExpired):
                if not fault:
                    rank.process.wait(END_SECONDS)
            rank.socket.close()
            rank.process.kill()
            rank.process.wait()

    def _tell(self, rank: _Rank, command: Command) -> None:
        try:
            send(rank.socket, command)
        except OSError as error:
            raise self._silent(rank, error) from None

    def _wait_ready(self) -> None:
        for rank in self._ranks:
            try:
                wait_ready(rank.socket)
            except OSError as error:
                raise self._silent(rank, error) from None

    def _silent(self, rank: _Rank, error: OSError) -> EngineError:
        self.fail(f"{rank} does not answer ({error}); why stands above in this log, if it ended")
        return EngineError(self._fault)
