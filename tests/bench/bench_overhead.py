"""What the framework adds: time through client, gRPC, Triton and BLS minus the time inside engines.

N streams, paced in real time, against a real server. Per unit the client takes the time from `send`, before it packs
the unit, to the response coming off the socket, and subtracts the time inside the engine calls of perceive, think,
perform and render by the server's own account: inside `Engine.run`, nothing of the Python around it. With several
streams on two cores this includes waiting for the other streams' engine calls. `transport` is the same of a model that
echoes the unit: the part of client, gRPC, Triton and its Python backend that no model can avoid. Cores stay awake
while the server has a session, if the machine allows it (`awake` in what is written); --no-awake measures without.

    python tests/bench/bench_overhead.py --engines build/engines/tiny
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import statistics
from pathlib import Path

import numpy as np
from summary import machine, merge
from transport import MODEL, echo_server

from client.own_server import server
from client.stream.client import DuplexClient
from client.stream.pacing import Pacer
from client.stream.units import UserUnit
from triton_models.launcher.awake import KeepAwake

ENGINE_STAGES = ("perceive", "think", "perform", "render")
WARM_UP_UNITS = 12  # connection, first calls, first pages
TRANSPORT_UNITS = 60


async def stream(url: str, model: str, units: int, seed: int) -> list[tuple[float, float]]:
    """One paced session; returns (round trip, engine) milliseconds of every unit after the warm-up."""
    rng = np.random.default_rng(seed)
    options = {"seed": seed, "retention": {"window": {"sink": 4, "recent": 50}}}
    async with await DuplexClient.connect(url, model=model) as client, client.session(options=options) as session:
        shape = client.shape

        def unit(index: int) -> UserUnit:
            pcm = rng.standard_normal(shape.samples, dtype=np.float32) * np.float32(0.1)
            frames = rng.integers(0, 256, shape.frames, dtype=np.uint8)
            return UserUnit(index, pcm, frames, end=index == units - 1)

        sent: dict[int, float] = {}
        await asyncio.sleep(0.16 * (seed % 8) / 8)  # users do not speak in step
        talking = asyncio.create_task(
            session.play((unit(i) for i in range(units)), Pacer(), lambda u, at: sent.update({u.index: at}))
        )
        rows = []
        async for response in session:
            trip = (response.received - sent.pop(response.unit_index)) * 1e3
            engine = sum(response.info["ms"][stage] for stage in ENGINE_STAGES)
            if response.unit_index >= WARM_UP_UNITS:
                rows.append((trip, engine))
        await talking
    return rows


async def measure(url: str, model: str, streams: int, units: int) -> list[tuple[float, float]]:
    parts = await asyncio.gather(*(stream(url, model, units, seed) for seed in range(streams)))
    return [row for part in parts for row in part]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=Path, default=Path("build/engines/tiny"))
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--units", type=int, default=150, help="units a stream (default: 150 = 24 s)")
    parser.add_argument("--out", type=Path, default=Path("build/runs/bench"))
    parser.add_argument("--no-awake", action="store_true", help="cores may sleep between units, in both servers")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    overhead: dict[str, float] = {}
    transport: dict[int, float] = {}
    awake = KeepAwake()
    wakes = contextlib.nullcontext() if args.no_awake else awake  # the launcher does it for the other server
    with wakes, echo_server(args.engines, args.out / "overhead-echo") as url:
        kept_awake = awake.held
        for streams in args.streams:
            trips = asyncio.run(measure(url, MODEL, streams, min(args.units, TRANSPORT_UNITS)))
            transport[streams] = statistics.median(trip for trip, _ in trips)
    table = []
    # Everybody is let in: with more streams than are on time the figure says by how much.
    with server(args.engines, args.out / "overhead-server", "--admit-all", *["--awake"] * (not args.no_awake)) as facts:
        if facts["awake"] != kept_awake:
            raise RuntimeError(f"awake: expected the same of both servers, got {kept_awake} and {facts['awake']}")
        print("cores stay awake while a session is open" if kept_awake else "cores may sleep between units")
        for streams in args.streams:
            rows = asyncio.run(measure(facts["grpc"], "duplex", streams, args.units))
            trips = sorted(trip for trip, _ in rows)
            extra = sorted(trip - engine for trip, engine in rows)
            on_time = sum(trip <= 160 for trip in trips) / len(trips)
            p95 = extra[int(0.95 * (len(extra) - 1))]
            median, engine = statistics.median(extra), statistics.median(e for _, e in rows)
            overhead[str(streams)] = round(median, 2)
            figures = [round(x, 2) for x in (statistics.median(trips), engine, median, p95)]
            table.append((streams, *figures, round(transport[streams], 2), round(on_time, 4), kept_awake))
            print(f"{streams} streams: {figures[0]} ms a unit, engines {engine:.1f}, overhead p50 {median:.2f} "
                  f"p95 {p95:.2f} ms, of which transport {transport[streams]:.2f}, on time {on_time:.1%}")  # fmt: skip
    with (args.out / "overhead.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            (
                "streams",
                "round_trip_p50_ms",
                "engine_p50_ms",
                "overhead_p50_ms",
                "overhead_p95_ms",
                "transport_p50_ms",
                "on_time",
                "awake",
            )
        )
        writer.writerows(table)
    echoes = {str(streams): round(ms, 2) for streams, ms in transport.items()}
    medians = {"overhead_ms_p50": overhead, "transport_ms_p50": echoes, "overhead_awake": kept_awake}
    merge(args.out, {**medians, "machine": machine()})


if __name__ == "__main__":
    main()
