"""Gateways of two trees in turn, on one server: last loud chunk of a word in -> first audio delta out, over Realtime.

git worktree add build/before b392dbc^        (before the clients that people have)
python tests/bench/bench_gateway.py --engines build/engines/tutor --trees build/before .
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import csv
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from aiohttp import ClientSession

from client.e2e.microphone import EVERY_SECONDS, LEAD_SECONDS, digit, speak, user
from client.own_server import server

sys.path.append(str(Path(__file__).resolve().parents[2]))

from tests.own_gateway import own_gateway

RATE, CHUNK = 24_000, 480  # samples: 20 ms


async def talk(url: str, words: int) -> list[float]:
    """Milliseconds of each word that was answered before the next one."""
    sound = (user(words, RATE) * 32767).astype("<i2")
    ends = [round((LEAD_SECONDS + i * EVERY_SECONDS) * RATE) + speak(digit(i), RATE).size for i in range(words)]
    sent: list[float] = []
    came: list[float] = []
    async with ClientSession() as http, http.ws_connect(url, max_msg_size=0) as socket:
        await socket.send_json({"type": "session.update", "session": {"type": "realtime", "instructions": "english"}})

        async def read() -> None:
            async for message in socket:
                heard(json.loads(message.data)["type"])

        def heard(kind: str) -> None:
            if kind == "response.output_audio.delta":
                came.append(time.monotonic())

        reading = asyncio.create_task(read())
        begin = time.monotonic()
        for place in range(0, ends[-1] + 2 * RATE, CHUNK):
            await asyncio.sleep(begin + place / RATE - time.monotonic())
            audio = base64.b64encode(sound[place : place + CHUNK].tobytes()).decode()
            await socket.send_json({"type": "input_audio_buffer.append", "audio": audio})
            sent.append(time.monotonic())
        reading.cancel()
    last = [sent[(end - 1) // CHUNK] for end in ends]
    first = [next((at for at in came if at > then), None) for then in last]
    return [(at - then) * 1e3 for at, then in zip(first, last, strict=True) if at is not None and at - then < 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=Path, default=Path("build/engines/tutor"))
    parser.add_argument("--trees", type=Path, nargs=2, required=True, metavar="DIR", help="before, after")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--words", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gateway.csv")
    args = parser.parse_args()
    found: dict[str, list[float]] = {"before": [], "after": []}
    run = Path("build/runs/bench/gateway")
    with server(args.engines, run, "--admit-all") as facts, contextlib.ExitStack() as open_:
        gateways = [
            open_.enter_context(own_gateway(facts["grpc"], run / f"{name}.log", tree=tree))
            for name, tree in zip(found, args.trees, strict=True)
        ]
        urls = [gateway.url.replace("http", "ws", 1) + "/v1/realtime" for gateway in gateways]
        for number in range(args.rounds):
            pairs = list(zip(found, urls, strict=True))
            for name, url in pairs if number % 2 == 0 else pairs[::-1]:
                found[name] += asyncio.run(talk(url, args.words))
                print(f"{name}: median {np.median(found[name]):.0f} ms, load {os.getloadavg()[0]:.1f}", flush=True)
    with args.out.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["gateway", "words", "median_ms", "p95_ms", "max_ms"])
        for name, values in found.items():
            row = [np.median(values), np.percentile(values, 95), max(values)]
            writer.writerow([name, len(values), *(round(float(value)) for value in row)])
    print(args.out.read_text())


if __name__ == "__main__":
    main()
