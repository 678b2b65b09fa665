"""The program of a rank that is not the first: does what rank 0 does, when it says so, and ends when that ends.

It is started by `Ranks` alone, with its end of their socket as standard input.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from engine_builder.config import ModelConfig
from engine_builder.manifest import Manifest
from triton_models.runtime.engines.devices import CPU
from triton_models.runtime.messages import Float32, HistoryView

from ...cuda.device_pool import DevicePool, memory_of, name_of
from ..engine import load_engines
from ..solver_bank import SolverBank
from ..steps import PerformEngine
from .commands import Drop, End, Join, Prepare, Put, Rehearse, Tick, receive, say_ready
from .ulysses import Ulysses, join


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group of a terminal; rank 0 ends us
    leader = socket.socket(fileno=0)
    threading.Thread(target=_end_with, args=(leader,), daemon=True).start()
    order = receive(leader)
    if not isinstance(order, Join):
        raise ValueError(f"command: expected Join, got {order}")
    say_ready(leader)
    place = torch.device(CPU if order.device == CPU else f"cuda:{order.device}")
    group = join(place, order.store, order.rank, order.ranks)
    directory, key = Path(order.engines), Path(order.trusted_key) if order.trusted_key else None
    manifest = Manifest.load(directory)
    exchange = Ulysses(manifest.model, group, place)
    engines = load_engines(directory, ("perform",), str(place), trusted_key=key, exchange=exchange)
    perform = engines["perform"]
    assert isinstance(perform, PerformEngine)
    wanted = receive(leader)
    if not isinstance(wanted, Prepare):
        raise ValueError(f"command: expected Prepare, got {wanted}")
    name = name_of(wanted.name, order.rank)
    size = wanted.pages, wanted.page_tokens, manifest.pool_precision
    with DevicePool.create(manifest.model, *size, memory_of(order.device), name, order.ranks) as pool:
        bank = perform.bank(pool, wanted.slots)
        say_ready(leader)
        _follow(leader, bank, manifest.model)
    dist.destroy_process_group()
    return 0


def _follow(leader: socket.socket, bank: SolverBank, config: ModelConfig) -> None:
    """Until the end of the group. Whatever goes wrong ends this rank: alone it would not come into step again. It waits
    without a limit, for hours may lie between two units, but not for a dead rank 0."""
    v, a = config.video, config.audio
    while not isinstance(command := receive(leader), End):
        match command:
            case Put(slot, x_video, x_audio, cos, sin, page_ids, ranges):
                view = HistoryView(np.frombuffer(page_ids, np.int64), np.frombuffer(ranges, np.int64).reshape(-1, 2))
                latents = _floats(x_video, v.tokens), _floats(x_audio, a.tokens)
                ropes = _floats(cos, config.latent_tokens), _floats(sin, config.latent_tokens)
                if (got := bank.put(*latents, *ropes, view)) != slot:
                    raise ValueError(f"slot: expected {slot}, got {got}")
            case Tick(slots, taus, steps):
                bank.tick(slots, taus, steps)
            case Drop(slot):
                bank.drop(slot)
            case Rehearse():
                bank.rehearse()
            case _:
                raise ValueError(f"command: expected one of a solver, got {command}")


def _floats(data: bytes, rows: int) -> Float32:
    return np.frombuffer(data, np.float32).reshape(rows, -1)


def _end_with(leader: socket.socket) -> None:
    """Ends this process when rank 0 is gone, whatever the main thread waits for."""
    poll = select.poll()
    poll.register(leader, select.POLLRDHUP)
    poll.poll()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
