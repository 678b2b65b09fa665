"""The bad network: what it does to packets, and a real gateway's answer behind it."""

from __future__ import annotations

import asyncio
import random

import pytest

from client.e2e.relay import Lane, Network, Relay

pytestmark = pytest.mark.unit


def lane(**network: float) -> Lane:
    return Lane(Network(**network), random.Random(1))


@pytest.mark.parametrize(
    ("network", "lost", "least", "most"),
    [
        ({}, 0.0, 0.0, 0.0),
        ({"rtt_ms": 80}, 0.0, 0.04, 0.04),
        ({"rtt_ms": 80, "jitter_ms": 30}, 0.0, 0.04, 0.07),
        ({"loss": 0.05}, 0.05, 0.0, 0.0),
        ({"rtt_ms": 80, "reorder": 0.1}, 0.0, 0.0, 0.04),
        ({"kbps": 80}, 0.77, 0.01, 1.01),
    ],
    ids=["plain", "delay", "jitter", "loss", "reordering", "bandwidth"],
)
def test_datagrams(network, lost, least, most):
    way = lane(**network)
    at = [(now, way.datagram(now, 100)) for now in (i / 500 for i in range(3000))]
    delays = [due - now for now, due in at if due is not None]
    assert 1 - len(delays) / len(at) == pytest.approx(lost, abs=0.02)
    assert (min(delays), max(delays)) == (pytest.approx(least, abs=2e-3), pytest.approx(most, abs=2e-3))


def test_segments_come_in_order_and_all_of_them():
    way = lane(rtt_ms=80, loss=0.05, jitter_ms=30)
    due = [way.segment(i / 100, 1400) for i in range(1000)]
    assert due == sorted(due)
    delays = [at - i / 100 for i, at in enumerate(due)]
    assert min(delays) < 0.05
    assert max(delays) > 0.2, "what follows a lost segment waits for it"


async def test_an_sdp_answer_names_the_relays_ports():
    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport):
            self.transport = transport

        def datagram_received(self, data, addr):
            self.transport.sendto(data[::-1], addr)

    loop = asyncio.get_running_loop()
    media, _ = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
    port = media.get_extra_info("sockname")[1]

    async def answer(reader, writer):
        writer.write(await reader.readline() + f"a=candidate:1 1 udp 1 127.0.0.1 {port} typ host\r\n".encode())
        writer.close()

    gateway = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with Relay(gateway.sockets[0].getsockname()[1], Network(rtt_ms=40)) as relay:
        begin = loop.time()
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        writer.write(b"offer\n")
        heard = (await reader.read()).decode()
        assert loop.time() - begin >= 0.04
        other = int(heard.split()[6])
        assert heard.startswith("offer")
        assert heard.split()[7:] == ["typ", "host"]
        assert other != port
        got: asyncio.Queue[bytes] = asyncio.Queue()

        class Client(asyncio.DatagramProtocol):
            def datagram_received(self, data, addr):
                got.put_nowait(data)

        client, _ = await loop.create_datagram_endpoint(Client, remote_addr=("127.0.0.1", other))
        begin = loop.time()
        client.sendto(b"abc")
        assert await asyncio.wait_for(got.get(), 5) == b"cba"
        assert loop.time() - begin >= 0.04
        client.close()
        writer.close()
    media.close()
    gateway.close()
