"""The page over WebRTC where 5% of the packets are lost and the round trip is 80 ms."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from client.e2e import feel
from client.e2e.__main__ import PROBE, QUANTUM
from client.e2e.chromium import chromium
from client.e2e.relay import Network, Relay

pytestmark = [pytest.mark.server, pytest.mark.slow]


def hum(seen):
    """An agent that speaks without a pause."""
    n = np.arange(2560) + seen.index * 2560
    return "speak", "", (0.3 * np.sin(n * 2 * np.pi * 220 / 16_000)).astype(np.float32), seen.frames


async def test_no_dropout_above_200_ms(start_fake, start_gate, tmp_path):
    fake, _ = await start_fake(answer=hum, delay=lambda unit: 0.05)
    gate = await start_gate(fake.url)
    async with Relay(gate.port, Network(rtt_ms=80, loss=0.05)) as relay, chromium(tmp_path / "profile") as tab:
        await tab.call("Page.setBypassCSP", enabled=True)
        await tab.call("Page.addScriptToEvaluateOnNewDocument", source=PROBE.read_text())
        await tab.open(f"http://127.0.0.1:{relay.port}/")
        await tab.run("document.getElementById('start').click()")
        await tab.until("wan.stats().units >= 3")
        await asyncio.sleep(14)
        probe = await tab.run("probe()")
        assert await tab.run("wan.stats().webrtc")
    assert 0 < probe["concealed"] < 0.2
    times, loud = feel.voiced(probe["out"], QUANTUM)
    assert times[loud][-1] - times[loud][0] > 10
    assert feel.longest_silence(times, loud) < 200
