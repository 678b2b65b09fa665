"""A bad network in user space: one TCP port in front of a gateway, and the UDP ports that its SDP answers name.

A TCP segment that is lost holds back what follows until it has been sent again, as TCP does; a datagram is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from dataclasses import dataclass
from typing import Any

SEGMENT = 1400  # bytes
QUEUE_SECONDS = 1.0  # of a bottleneck; what comes on top is dropped
WAITING = 512  # segments of one TCP connection; then its sender waits
CLIENTS = 64  # addresses behind one UDP port
_CANDIDATE = re.compile(rb"(127\.0\.0\.1 )(\d{5})( typ host)")  # replaced by one of equal length

Address = tuple[str, int]


@dataclass(frozen=True)
class Network:
    """Both directions share it: half of the round trip each. kbps: 0 has no limit."""

    rtt_ms: float = 0.0
    loss: float = 0.0
    jitter_ms: float = 0.0
    reorder: float = 0.0
    kbps: float = 0.0

    @property
    def plain(self) -> bool:
        return self == Network()


class Lane:
    """Pure policy of one direction: when what leaves now arrives. Times in seconds."""

    def __init__(self, network: Network, rng: random.Random) -> None:
        self._network, self._rng = network, rng
        self._free = self._last = 0.0  # when the bottleneck is free; when the newest in order arrives

    def datagram(self, now: float, size: int) -> float | None:
        """None: it is lost. A reordered one overtakes the delay of the others."""
        network, rng = self._network, self._rng
        at = self._through(now, size)
        if at is None or rng.random() < network.loss:
            return None
        if rng.random() < network.reorder:
            return at
        return at + (network.rtt_ms / 2 + rng.uniform(0, network.jitter_ms)) / 1e3

    def segment(self, now: float, size: int) -> float:
        """In order. One that is lost comes when the next acknowledgements have shown it, or by a tail probe."""
        network, rng = self._network, self._rng
        at = self._through(now, size) or self._free
        at += (network.rtt_ms / 2 + rng.uniform(0, network.jitter_ms)) / 1e3
        while rng.random() < network.loss:
            at += (2 * network.rtt_ms + 10) / 1e3
        self._last = max(self._last, at)
        return self._last

    def _through(self, now: float, size: int) -> float | None:
        if not self._network.kbps:
            return now
        start = max(now, self._free)
        if start - now > QUEUE_SECONDS:
            return None
        self._free = start + size * 8 / (self._network.kbps * 1e3)
        return self._free


class Relay:
    """`async with Relay(port, network) as relay`: then the gateway at `port` is at `relay.port` too."""

    def __init__(self, target: int, network: Network, seed: int = 0) -> None:
        self.port = 0
        self._target, self._network, self._rng = target, network, random.Random(seed)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._doors: dict[int, _Door] = {}  # by the gateway's UDP port

    async def __aenter__(self) -> Relay:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for door in self._doors.values():
            door.close()

    def lane(self) -> Lane:
        return Lane(self._network, self._rng)

    # -- TCP ---------------------------------------------------------------------------------------------------
    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        there: asyncio.StreamWriter | None = None
        try:
            back, there = await asyncio.open_connection("127.0.0.1", self._target)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, there, answers=False))
                both.create_task(self._pump(back, writer, answers=True))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            for end in (writer, there):
                if end is not None:
                    end.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool) -> None:
        loop, lane = asyncio.get_running_loop(), self.lane()
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(WAITING)

        async def deliver() -> None:
            while True:
                due, data = await waiting.get()
                await asyncio.sleep(due - loop.time())
                if not data:
                    sink.write_eof()
                    return
                sink.write(data)
                await sink.drain()

        delivery = asyncio.create_task(deliver())
        try:
            while data := await source.read(1 << 16):
                if answers and b" typ host" in data:
                    data = await self._renamed(data)
                for start in range(0, len(data), SEGMENT):
                    part = data[start : start + SEGMENT]
                    await waiting.put((lane.segment(loop.time(), len(part)), part))
            await waiting.put((lane.segment(loop.time(), 1), b""))
            await delivery
        finally:
            delivery.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await delivery

    async def _renamed(self, data: bytes) -> bytes:
        """An SDP answer that names this relay's ports instead of the gateway's."""
        for port in {int(found[1]) for found in _CANDIDATE.findall(data)}:
            if port not in self._doors:
                self._doors[port] = await _Door.open(self, port)
        return _CANDIDATE.sub(lambda m: m[1] + str(self._doors[int(m[2])].port).encode() + m[3], data)


# -- UDP ----------------------------------------------------------------------------------------------------------
class _Door(asyncio.DatagramProtocol):
    """A UDP port in front of one of the gateway's; each client behind it has a way of its own."""

    def __init__(self, relay: Relay, target: int) -> None:
        self._relay, self._target, self._up = relay, target, relay.lane()
        self._ways: dict[Address, asyncio.Task[tuple[asyncio.DatagramTransport, Any]]] = {}

    @classmethod
    async def open(cls, relay: Relay, target: int) -> _Door:
        make = asyncio.get_running_loop().create_datagram_endpoint
        _, door = await make(lambda: cls(relay, target), local_addr=("127.0.0.1", 0))
        return door

    @property
    def port(self) -> int:
        return self.transport.get_extra_info("sockname")[1]

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Address) -> None:
        loop = asyncio.get_running_loop()
        if addr not in self._ways:
            if len(self._ways) >= CLIENTS:
                return
            way = loop.create_datagram_endpoint(
                lambda: _Way(self.transport, addr, self._relay.lane()), remote_addr=("127.0.0.1", self._target)
            )
            self._ways[addr] = loop.create_task(way)
        due = self._up.datagram(loop.time(), len(data))
        if due is not None:
            way = self._ways[addr]
            loop.call_at(due, lambda: way.add_done_callback(lambda done: done.result()[0].sendto(data)))

    def close(self) -> None:
        for way in self._ways.values():
            if way.done() and not way.cancelled():
                way.result()[0].close()
            way.cancel()
        self.transport.close()


class _Way(asyncio.DatagramProtocol):
    """Back from the gateway to one client."""

    def __init__(self, door: Any, client: Address, lane: Lane) -> None:
        self._door, self._client, self._lane = door, client, lane

    def datagram_received(self, data: bytes, addr: Address) -> None:
        loop = asyncio.get_running_loop()
        due = self._lane.datagram(loop.time(), len(data))
        if due is not None:
            loop.call_at(due, lambda: self._door.is_closing() or self._door.sendto(data, self._client))
