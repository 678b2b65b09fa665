"""`make soak`: people come and go for an hour, through a real server and its gateway -> build/runs/soak/figures.json.

First so many come at once that some are refused, and send as fast as they may: pools of threads and pages, which never
shrink, reach there what they will ever need. Then three or four are there, whose conversations have random lengths;
some leave without a word, some lose their stream and resume, some interrupt, some type, some come by the gateway's
page. Resident memory, descriptors, threads, pages and shared memory at the end are compared with those of minute 5 (of
a short run: of its first half), both while nobody talks: no drift above 2%. What every minute was like, while they
talk, stands in minutes.csv.

    python -m tests.soak --engines build/engines/tutor --minutes 60
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import json
import os
import random
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/triton_models")]

from aiohttp import ClientSession, WSMsgType  # noqa: E402
from real_server import Server  # noqa: E402

from client.stream import DuplexClient, DuplexError, Pacer  # noqa: E402
from client.stream.units import UserUnit, quiet  # noqa: E402
from client.web.page import frames  # noqa: E402
from tests.own_gateway import own_gateway  # noqa: E402

PEOPLE = 3  # at once over gRPC, and one by the page
DRIFT = 0.02
SETTLE_SECONDS = 75.0  # nobody talks: what was kept for who might come back (30 s) is freed, and given back (60 s)
WARM_MINUTES = 5.0


class Crowd:
    def __init__(self, address: str, gateway: str, seed: int) -> None:
        self.address, self.gateway, self.random = address, gateway, random.Random(seed)
        self.met: Counter[str] = Counter()

    async def crowd_in(self) -> None:
        visits = [self._pages(time.monotonic() + 10) for _ in range(PEOPLE)]
        talks = [self._conversation(60, "hurries") for _ in range(4 * PEOPLE)]
        await asyncio.gather(*visits, *talks, return_exceptions=True)  # some are refused: the server is full

    async def talk_until(self, end: float) -> None:
        people = [self._person(end) for _ in range(PEOPLE)]
        await asyncio.gather(*people, self._pages(end))

    async def _person(self, end: float) -> None:
        draw = self.random
        while time.monotonic() < end:
            units = min(draw.choice([3, 10, 30, 80]), max(3, int((end - time.monotonic()) / 0.16)))
            try:
                await self._conversation(units, draw.choice(["polite", "leaves", "resumes", "interrupts", "types"]))
            except DuplexError as error:
                self.met[f"error {error.code}"] += 1
                await asyncio.sleep(1)

    async def _conversation(self, units: int, manner: str) -> None:
        draw, options = self.random, {"seed": self.random.randrange(1000), "hold_open": True}
        options["prompt"] = draw.choice(["", "be kind", "count with me"])
        async with (
            await DuplexClient.connect(self.address) as client,
            client.session(options=options, reconnect=manner == "resumes") as session,
        ):
            pacer, heard = Pacer(), 0

            def user() -> Any:
                for k in range(units):
                    said = quiet(k, client.shape)
                    text = "hello" if manner == "types" and k == 2 else ""
                    last = k == units - 1 and manner != "leaves"
                    yield UserUnit(k, said.pcm, said.frames, text, last, manner == "interrupts" and k % 9 == 8)

            async def hurry() -> None:
                for unit in user():
                    await session.send(unit)

            sending = asyncio.create_task(hurry() if manner == "hurries" else session.play(user(), pacer))
            try:
                async for answer in session:
                    heard += 1
                    self.met["late"] += (
                        manner != "hurries" and answer.received > pacer.deadline(answer.unit_index) and not answer.lost
                    )
                    if manner == "leaves" and heard == units:
                        break
                    if manner == "resumes" and heard == units // 2:
                        session._call.cancel()  # as a network does
            finally:
                sending.cancel()
            self.met["units"] += heard
            self.met[manner] += 1

    async def _pages(self, end: float) -> None:
        async with ClientSession() as http:
            while time.monotonic() < end:
                with contextlib.suppress(OSError, asyncio.TimeoutError):
                    async with http.ws_connect(f"{self.gateway}/v1/session") as ws:
                        await ws.send_json({"type": "hello"})
                        await ws.send_bytes(frames.pack(frames.PCM16, 0, bytes(5120)))
                        leave = time.monotonic() + self.random.choice([1, 4, 12])
                        while time.monotonic() < min(leave, end):
                            message = await ws.receive(timeout=5)
                            if message.type is not WSMsgType.TEXT and message.type is not WSMsgType.BINARY:
                                break
                        self.met["pages"] += 1


def figures(server: Server, gateway: int) -> dict[str, float]:
    """Of everything that runs."""
    info = server.info
    pids = {"launcher": info["launcher_pid"], "tritonserver": info["server_pid"], "gateway": gateway}
    pids |= {"duplex": info["model_pids"]["duplex"], "stage": info["model_pids"]["thinker"]}
    found: dict[str, float] = {}
    for name, pid in pids.items():
        process = psutil.Process(pid)
        found[f"{name}.rss_mb"] = round(process.memory_info().rss / 2**20, 1)
        found[f"{name}.descriptors"] = process.num_fds()
        found[f"{name}.threads"] = process.num_threads()
    found["pages"] = server.model("thinker")["pages.used"]
    sizes = [os.stat(f"/dev/shm/{name}") for name in server.shared_memory()]
    found["shared_memory_mb"] = round(sum(size.st_blocks * 512 for size in sizes) / 2**20, 1)
    return found


def watch(server: Server, gateway: int, path: Path, over: threading.Event) -> None:
    """A row a minute, while people talk."""
    with path.open("w", newline="") as file:
        while not over.wait(60):
            row = figures(server, gateway)
            if not file.tell():
                csv.writer(file).writerow(["time", *row])
            csv.writer(file).writerow([time.strftime("%H:%M:%S"), *row.values()])
            file.flush()


def drift(first: dict[str, float], last: dict[str, float]) -> dict[str, float]:
    """What grew by more than 2% and more than one piece or megabyte, by how much."""
    grown = {name: (last[name] - first[name]) / max(first[name], 1) for name in first}
    return {name: round(by, 3) for name, by in grown.items() if by > DRIFT and last[name] - first[name] > 1}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=Path, default=Path("build/engines/tutor"))
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/runs/soak"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    warm = min(WARM_MINUTES, args.minutes / 2)
    server = Server(args.engines.resolve(), args.out.resolve(), "--keep-steps", name="server")
    server.wait_ready()
    log, over = args.out / "gateway.log", threading.Event()
    try:
        with (
            own_gateway(server.info["grpc"], log, "--connects-per-minute", "100000") as gateway,
            contextlib.ExitStack() as end,
        ):
            end.callback(over.set)
            pid = gateway.process.pid
            crowd = Crowd(server.info["grpc"], gateway.url, args.seed)
            begin = time.monotonic()
            rows = threading.Thread(target=watch, args=(server, pid, args.out / "minutes.csv", over))
            rows.start()
            asyncio.run(crowd.crowd_in())
            asyncio.run(crowd.talk_until(begin + 60 * warm))
            time.sleep(SETTLE_SECONDS)
            first = figures(server, pid)
            asyncio.run(crowd.talk_until(begin + 60 * args.minutes))
            time.sleep(SETTLE_SECONDS)
            last = figures(server, pid)
    finally:
        restarts = server.health()[1].get("restarts")
        code = server.stop()
    found = {"minutes": args.minutes, "at_minute": warm, "first": first, "last": last, "met": dict(crowd.met)}
    found |= {"restarts": restarts, "exit": code, "drift": drift(first, last)}
    (args.out / "figures.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return int(bool(found["drift"] or restarts or code))


if __name__ == "__main__":
    sys.exit(main())
