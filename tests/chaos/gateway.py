"""Floods at the gateway: a page talks through it beside each, and the row says how many of its units were on time.

    python tests/chaos/gateway.py URL KIND SECONDS

is the flood, in a process of its own.
"""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

import psutil  # noqa: E402
from aiohttp import ClientError, ClientSession, WSMsgType  # noqa: E402

from client.web.page import frames  # noqa: E402
from tests.own_gateway import own_gateway  # noqa: E402

if TYPE_CHECKING:
    from house import House

SECONDS = 6.0
CALM_SECONDS = 3.0  # the page talks before the flood begins
UNIT_SECONDS = 0.16
SOCKETS = 8


def flooded(kind: str, house: House) -> str:
    log = house.runs / "gateway.log"
    with own_gateway(house.main.info["grpc"], log) as gateway:
        command = [sys.executable, __file__, gateway.url, kind, str(SECONDS)]
        found = asyncio.run(_beside(gateway.url, gateway.process, command))
    assert "Traceback" not in log.read_text(), log.read_text()[-300:]
    return found


async def _beside(url: str, gateway: psutil.Process, command: list[str]) -> str:
    """Talks as a page does, in real time, until the flood is over."""
    came: dict[int, float] = {}
    async with ClientSession() as http, http.ws_connect(f"{url}/v1/session") as ws:
        await ws.send_json({"type": "hello"})

        async def hear() -> None:
            async for message in ws:
                if message.type is WSMsgType.TEXT and (said := json.loads(message.data))["type"] == "unit":
                    came[said["unit"]] = time.monotonic()

        async def speak() -> None:
            begin, unit = time.monotonic(), 0
            while True:
                await ws.send_bytes(frames.pack(frames.PCM16, unit, bytes(5120)))
                unit += 1
                await asyncio.sleep(max(0.0, begin + unit * UNIT_SECONDS - time.monotonic()))

        talking = [asyncio.create_task(hear()), asyncio.create_task(speak())]
        await asyncio.sleep(CALM_SECONDS)
        begin, cpu = time.monotonic(), sum(gateway.cpu_times()[:2])
        # On another machine it would leave us our cores.
        flood = await asyncio.create_subprocess_exec("nice", "-n", "5", *command, stdout=subprocess.PIPE)
        met = (await flood.communicate())[0].decode().strip()
        busy = (sum(gateway.cpu_times()[:2]) - cpu) / (time.monotonic() - begin)
        for task in talking:
            task.cancel()
    lags = {unit: at - unit * UNIT_SECONDS for unit, at in came.items()}
    before, during = [], []
    for unit, lag in lags.items():
        (during if came[unit] >= begin else before).append(lag - min(lags.values()) <= UNIT_SECONDS)
    assert sorted(came) == list(range(len(came))), "expected every unit of the page, in order"
    assert during, "expected the page's conversation to go on"
    share = f"{sum(during) / len(during):.0%} of {len(during)} units on time ({sum(before) / len(before):.0%} before)"
    return f"{met}; the gateway took {busy:.0%} of a core; a page beside it: {share}"


# -- the flood --------------------------------------------------------------------------------------------------
def _append(samples: int) -> str:
    return json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(bytes(2 * samples)).decode()})


def _item(text: str) -> str:
    content = [{"type": "input_text", "text": text}]
    return json.dumps(
        {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": content}}
    )


# Of the first connection. The others leave out its first event, with which each would begin a conversation.
EVENTS: dict[str, list[str]] = {
    "events": [_append(1), '{"type": "input_audio_buffer.clear"}', '{"type": "nobody.knows"}', "{"],
    "items": [_item("and more"), _item("tell me more " * 50)],
    "large": [_append(24_000 * 50), '{"type": "x", "a": [' + "[]," * 3_000_000 + "[]]}"],
}


async def flood(url: str, kind: str, seconds: float) -> Counter[str]:
    met: Counter[str] = Counter()
    async with ClientSession() as http:
        end = time.monotonic() + seconds
        kinds = [EVENTS.get(kind, [])[min(number, 1) :] for number in range(SOCKETS)]
        await asyncio.gather(*(_socket(http, url, events, end, met) for events in kinds))
    return met


async def _socket(http: ClientSession, url: str, events: list[str], end: float, met: Counter[str]) -> None:
    """One connection after the other, each until it is closed; without events only that."""

    async def drain(ws: Any) -> None:
        async for _ in ws:
            met["answers"] += 1

    while time.monotonic() < end:
        try:
            async with asyncio.timeout(end - time.monotonic()):
                ws = await http.ws_connect(f"{url}/v1/realtime", max_msg_size=1 << 25)
                met["connections"] += 1
                if not events:
                    ws._response.close()
                    continue
                draining = asyncio.create_task(drain(ws))
                try:
                    while not ws.closed:
                        for event in events:
                            await ws.send_str(event)
                            met["sent"] += 1
                finally:
                    draining.cancel()
                    ws._response.close()
        except TimeoutError:
            return
        except (ClientError, ConnectionError) as error:
            met[f"refused {getattr(error, 'status', '')}".strip()] += 1


FLOODS: dict[str, Callable[[House], str]] = {
    f"gateway: {what}": partial(flooded, kind)
    for kind, what in {
        "events": "events as fast as 8 connections can",
        "items": "items as fast as 8 connections can",
        "large": "events of 4 and 9 MB",
        "reconnects": "connections that come and go",
    }.items()
}

if __name__ == "__main__":
    print(", ".join(f"{n:,} {what}" for what, n in asyncio.run(flood(*sys.argv[1:3], float(sys.argv[3]))).items()))
