"""From the last sample of a word at the microphone of headless Chromium to the first sample at its loudspeaker and the
first changed picture on its screen, over WebRTC and over WebSocket, behind a bad network in user space.

The microphone is a file of digits that espeak-ng says; both ends are taken down on the page's audio clock, behind the
browser's capture and before its audio device.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ..own_server import ServerFailed, ends_with_us, server
from ..terminal import count, execute, milliseconds, share
from . import feel, report
from .chromium import PageError, chromium
from .microphone import EVERY_SECONDS, LEAD_SECONDS, RATE, answer, write
from .relay import Network, Relay
from .report import Row

PROBE = Path(__file__).parent / "probe.js"
QUANTUM = 128 / RATE  # seconds; see probe.js
TRANSPORTS = ("webrtc", "websocket")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m client.e2e", description=__doc__)
    add = parser.add_argument
    add("--engines", type=Path, default=Path("build/engines/tutor"), metavar="DIR", help="(default %(default)s)")
    add("--transport", choices=TRANSPORTS, nargs="+", default=list(TRANSPORTS))
    add("--rtt", type=milliseconds, nargs="+", default=[0, 20, 80, 150], metavar="MS", help="round trips (%(default)s)")
    add("--loss", type=share, nargs="+", default=[0, 0.01, 0.05], metavar="SHARE", help="of packets (%(default)s)")
    add("--words", type=count, default=8, metavar="N", help="for each (default %(default)s)")
    add(
        "--out",
        type=Path,
        default=Path("build/runs/e2e"),
        metavar="DIR",
        help="e2e.csv, table.md, bars.png, and what was taken down",
    )
    args = parser.parse_args(arguments)
    console = Console(stderr=True)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # server, gateway and browser must not outlive this

    def run() -> int:
        args.out.mkdir(parents=True, exist_ok=True)
        write(args.out / "microphone.wav", args.words)
        with server(args.engines, args.out / "server", "--admit-all") as facts, _gateway(facts["grpc"]) as port:
            rows = asyncio.run(_measure(port, args, console))
        report.write_csv(rows, args.out / "e2e.csv")
        report.draw(rows, args.out / "bars.png")
        (args.out / "table.md").write_text(report.table(rows))
        console.print(report.table(rows))
        return 0

    return execute(run, console, ServerFailed, PageError)


async def _measure(port: int, args: argparse.Namespace, console: Console) -> list[Row]:
    rows = []
    for rtt in args.rtt:
        for loss in args.loss:
            for transport in args.transport:  # in turn: what else the machine does meets all alike
                probe = await talk(
                    port, Network(rtt_ms=rtt, loss=loss), transport, args.out / "microphone.wav", args.words
                )
                (args.out / f"{transport}-{rtt:g}-{loss:g}.json").write_text(json.dumps(probe))
                rows.append(row(transport, rtt, loss, probe))
                console.print(report.table(rows[-1:]).splitlines()[-1])
    return rows


async def talk(port: int, network: Network, transport: str, microphone: Path, words: int) -> dict[str, Any]:
    """One conversation; what the probe saw."""
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        relay = await stack.enter_async_context(Relay(port, network))
        tab = await stack.enter_async_context(chromium(Path(folder), microphone))
        await tab.call("Page.setBypassCSP", enabled=True)
        await tab.call("Page.addScriptToEvaluateOnNewDocument", source=PROBE.read_text())
        await tab.open(f"http://127.0.0.1:{relay.port}/")
        if transport == "websocket":
            await tab.run("document.getElementById('webrtc').click()")
        await tab.run("document.getElementById('start').click()")
        await tab.until("wan.stats().units >= 1")
        if await tab.run("wan.stats().webrtc") != (transport == "webrtc"):
            raise PageError("the page went on over WebSocket")
        await asyncio.sleep(LEAD_SECONDS + words * EVERY_SECONDS)
        return await tab.run("probe()")


def row(transport: str, rtt: float, loss: float, probe: dict[str, Any]) -> Row:
    found = feel.words(probe, QUANTUM)
    sounds = [word.sound for word in found if word.sound is not None]
    sound, codec = feel.median(sounds), feel.CODEC_MS[transport]
    model, server_ms = (feel.median([getattr(word, name) for word in found]) for name in ("model", "server"))
    said = "".join(text for _, text in probe["captions"])
    buffered = probe["buffered"] or 0.0
    return Row(
        transport=transport,
        rtt_ms=rtt,
        loss=loss,
        words=len(found),
        answered=len(sounds),
        right=sum(answer(place) in said for place in range(len(found))),
        sound_ms=sound,
        sound_p90_ms=float(np.percentile(sounds, 90)) if sounds else float("nan"),
        picture_ms=feel.median([word.picture for word in found]),
        network=rtt,
        model=model,
        server=server_ms,
        codec=codec,
        jitter_buffer=buffered,
        units=sound - rtt - model - server_ms - codec - buffered,
        concealed=probe["concealed"],
        lips_ms=feel.lips(probe["pictures"], *feel.quanta(probe["out"], QUANTUM)),
        load=os.getloadavg()[0],
    )


@contextlib.contextmanager
def _gateway(url: str) -> Iterator[int]:
    command = [sys.executable, "-m", "client.web", "--url", url, "--port", "0"]
    with subprocess.Popen(ends_with_us(command), stdout=subprocess.PIPE, text=True) as gateway:
        assert gateway.stdout is not None
        try:
            yield int(gateway.stdout.readline().split()[1].rstrip("/").rpartition(":")[2])
        finally:
            gateway.terminate()


if __name__ == "__main__":
    sys.exit(main())
