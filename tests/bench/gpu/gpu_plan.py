"""How much a run of `bench_gpu.py` does, and how it takes times."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from engine_builder.config import ModelConfig
from engine_builder.presets import preset


@dataclass(frozen=True)
class Plan:
    """How much of it to run."""

    batches: tuple[int, ...]
    window: float  # seconds of history
    repeats: int
    copy_bytes: int
    matmul_size: int
    simulated: float  # seconds a simulation covers
    seeds: int
    session_limit: int
    plain_repeats: int = 5  # of plain PyTorch, whose calls are long

    @classmethod
    def smoke(cls) -> Plan:
        return cls((1, 2), 0.5, 1, 1 << 16, 64, 4.0, 1, 3, 1)


class Clock:
    """Times calls: CUDA events on a GPU, wall clock for what includes the host."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def wall_ms(self, call: Callable[[], Any], repeats: int | None = None) -> float:
        """Median of single calls, each waited for."""
        call()
        times = []
        for _ in range(repeats or self.repeats):
            self.synchronize()
            begin = time.perf_counter()
            call()
            self.synchronize()
            times.append((time.perf_counter() - begin) * 1e3)
        return statistics.median(times)

    def device_ms(self, call: Callable[[], Any], stream: torch.cuda.Stream | None = None) -> float:
        """Median over pairs of events around calls that follow each other without waiting."""
        if self.device.type != "cuda":
            return self.wall_ms(call)
        stream = stream or torch.cuda.current_stream(self.device)
        with torch.cuda.stream(stream):
            call()
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(self.repeats + 1)]
            marks[0].record(stream)
            for mark in marks[1:]:
                call()
                mark.record(stream)
            stream.synchronize()
        return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(marks))


def config_of(name: str, smoke: bool) -> ModelConfig:
    config = preset(name)
    if not smoke:
        return config
    small = {"hidden_size": 32, "layers": 1, "heads": 4, "kv_heads": 2, "head_dim": 16, "intermediate_size": 48}
    return replace(config, backbone=replace(config.backbone, **small), language=replace(config.language, slots=2))


def say(text: str) -> None:
    print(text, flush=True)
