"""The short form of `make fuzz`: seeded events at the gateway's sockets, beside a page that goes on."""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

import pytest
from sockets import Fuzzer, page_beside

from client.web.door.access import Access

pytestmark = pytest.mark.unit
SCALE = int(os.environ.get("FUZZ_SCALE", "1"))


async def test_odd_events_are_answered_and_hurt_nobody(start_fake: Any, start_gate: Any) -> None:
    fake, _ = await start_fake()
    gate = await start_gate(fake.url, access=Access(per_minute=10**6))
    stop = asyncio.Event()
    beside = asyncio.create_task(page_beside(gate.url, gate.http, stop))
    fuzzer = Fuzzer(gate.url, gate.http, random.Random(0))
    await fuzzer.run(500 * SCALE)
    stop.set()
    heard, due = await beside
    print(dict(fuzzer.seen), heard, due)
    assert heard >= 0.8 * due - 3, "the page was answered all the while"
    assert gate.server is not None
