"""At the door: what is refused before it costs anything, how often one peer may knock, and what is measured."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import sys
import threading
import weakref
from types import SimpleNamespace

import pytest
from aiohttp import WSMsgType, WSServerHandshakeError

from client.web.door.access import Access
from client.web.door.connection import EVENT_BURST
from client.web.rates import MAX_PEERS, Bucket, Rates

pytestmark = pytest.mark.unit
SECRET = "correct horse battery staple"


async def _raw(port: int, head: str, body: bytes = b"") -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
    try:
        return await asyncio.wait_for(reader.read(4096), 10)
    finally:
        writer.close()


@pytest.mark.parametrize("host", ["[", "]", "[::1", "a]b"])
async def test_a_host_that_is_none_is_a_bad_request(start_gate, host):
    gate = await start_gate("127.0.0.1:1")
    answer = await _raw(gate.port, f"GET / HTTP/1.1\nHost: {host}")
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400")), answer[:80]


async def test_a_packed_body_is_not_unpacked(start_gate, monkeypatch):
    monkeypatch.setattr("zlib.decompressobj", lambda *_: pytest.fail("unpacked"))
    gate = await start_gate("127.0.0.1:1")
    head = "POST /v1/realtime/client_secrets HTTP/1.1\nHost: localhost\nContent-Length: 4096\nContent-Encoding: gzip"
    answer = await _raw(gate.port, head, bytes(4096))
    assert answer.startswith(b"HTTP/1.1 415")
    assert gate.desk.refused == {"content-encoding": 1}


@pytest.mark.parametrize(("path", "status"), [("/none", 404), ("/v1/stats", 401), ("/v1/realtime", 401)])
async def test_error_answers_have_the_headers_too(start_gate, path, status):
    gate = await start_gate("127.0.0.1:1", access=Access(secret=SECRET))
    async with gate.http.get(gate.url + path) as response:
        assert response.status == status
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src" in response.headers["Content-Security-Policy"]


async def test_a_token_that_is_the_only_subprotocol_is_not_logged(start_fake, start_gate, caplog):
    caplog.set_level(logging.DEBUG)
    fake, _ = await start_fake()
    gate = await start_gate(fake.url, access=Access(secret=SECRET))
    token = gate.desk.access.make_token()[0]
    async with gate.http.ws_connect(f"{gate.url}/v1/realtime", protocols=(f"openai-insecure-api-key.{token}",)) as ws:
        assert (await ws.receive_json())["type"] == "session.created"
    assert token not in caplog.text


async def test_one_peer_may_knock_so_often(start_fake, start_gate):
    fake, _ = await start_fake()
    gate = await start_gate(fake.url, access=Access(secret=SECRET, per_minute=6, behind_proxy=True))
    url, seen = f"{gate.url}/v1/realtime/client_secrets", []
    for number in range(5):
        headers = {"Authorization": "Bearer guess", "X-Forwarded-For": f"10.0.0.{number}, 10.0.0.7"}
        async with gate.http.post(url, headers=headers) as response:
            seen.append(response.status)
    assert seen == [401, 401, 401, 429, 429]
    headers = {"Authorization": f"Bearer {SECRET}", "X-Forwarded-For": "10.0.0.7"}
    with pytest.raises(WSServerHandshakeError, match="429"):
        await gate.http.ws_connect(f"{gate.url}/v1/session", headers=headers)
    async with gate.http.post(url, headers={**headers, "X-Forwarded-For": "10.0.0.8"}) as response:
        assert response.status == 200


def test_buckets():
    now = [0.0]
    bucket = Bucket(2.0, 4.0, lambda: now[0])
    assert [bucket.take() for _ in range(5)] == [True] * 4 + [False]
    now[0] = 1.0
    assert [bucket.take(2.0), bucket.take()] == [True, False]
    assert [bucket.charge(), bucket.charge(3.0)] == [0.5, 2.0]
    rates = Rates(1.0, 1.0, lambda: now[0])
    assert [rates.take("a"), rates.take("a"), rates.take("b")] == [True, False, True]
    for number in range(MAX_PEERS):
        rates.take(str(number))
    assert rates.take("a"), "who has been quiet for long is forgotten"


async def test_a_flood_of_events_leaves_others_their_turn(start_fake, start_gate, monkeypatch):
    """H37: a client whose messages were there already used to be served until there were none."""
    fake, _ = await start_fake()
    gate = await start_gate(fake.url)
    heard = []
    monkeypatch.setattr("client.web.realtime.commands.Commands.on_text", _hears(heard))
    async with gate.http.ws_connect(f"{gate.url}/v1/realtime") as ws:
        for _ in range(int(EVENT_BURST) + 400):
            await ws.send_str("{}")
        async with gate.http.get(f"{gate.url}/healthz") as response:
            assert response.status == 200
        assert len(heard) <= EVENT_BURST + 200, "read no faster than a budget"


async def test_a_flood_over_many_connections_is_no_faster(start_fake, start_gate, monkeypatch):
    """64 of them, each at its limit, would take the loop twice over."""
    monkeypatch.setattr("client.web.door.desk.PEER_EVENTS", 10.0)
    monkeypatch.setattr("client.web.door.connection.CALM_EVENTS", 1.0)
    fake, _ = await start_fake()
    gate = await start_gate(fake.url)
    heard = []
    monkeypatch.setattr("client.web.realtime.commands.Commands.on_text", _hears(heard))
    sockets = [await gate.http.ws_connect(f"{gate.url}/v1/realtime") for _ in range(3)]
    for ws in sockets:
        for _ in range(200):
            await ws.send_str("{}")
    for _ in range(20):
        async with gate.http.get(f"{gate.url}/healthz") as response:
            assert response.status == 200
    assert len(heard) < 200, "of 600"
    for ws in sockets:
        ws._response.connection.transport.abort()


async def test_who_is_calm_does_not_pay_for_a_neighbour(start_fake, start_gate, monkeypatch):
    """Behind one address there may be a whole office."""
    monkeypatch.setattr("client.web.door.desk.PEER_EVENTS", 10.0)
    fake, _ = await start_fake()
    gate = await start_gate(fake.url)
    heard = []
    monkeypatch.setattr("client.web.realtime.commands.Commands.on_text", _hears(heard))
    async with gate.http.ws_connect(f"{gate.url}/v1/realtime") as greedy:
        await greedy.send_str("x" * (4 << 20))  # as much as 513 events
        while gate.desk._events.charge("127.0.0.1", 0.0) < 30.0:  # seconds of debt
            await asyncio.sleep(0.02)
        async with asyncio.timeout(20), gate.http.ws_connect(f"{gate.url}/v1/realtime") as calm:
            await calm.send_str("calm")
            while "calm" not in heard:
                await asyncio.sleep(0.02)


def _hears(heard):
    async def on_text(self, data):
        heard.append(data)

    return on_text


async def test_metrics_are_for_those_who_have_the_secret(start_fake, start_gate):
    fake, _ = await start_fake()
    gate = await start_gate(fake.url, access=Access(secret=SECRET))
    call = await gate.desk.new_call(live=True, limit_seconds=1.0)
    call.attach()
    call.start()
    while call.answered < 3:
        await asyncio.sleep(0.02)
    async with gate.http.get(f"{gate.url}/metrics") as response:
        assert response.status == 401
    async with gate.http.get(f"{gate.url}/metrics", headers={"Authorization": f"Bearer {SECRET}"}) as response:
        lines = (await response.text()).splitlines()
    assert 'wan_gateway_sessions{state="attached"} 1.0' in lines
    assert 'wan_gateway_session_events_total{event="opened"} 1.0' in lines
    assert 'wan_gateway_turned_away_total{reason="token"} 1.0' in lines
    counted = next(line for line in lines if line.startswith("wan_gateway_unit_seconds_count"))
    assert float(counted.split()[1]) >= 3


@pytest.mark.parametrize(
    ("path", "secret", "status"),
    [("/healthz", None, 503), ("/metrics", None, 403), ("/metrics", SECRET, 401), ("/", SECRET, 403)],
)
async def test_monitors_ask_by_address(start_gate, monkeypatch, path, secret, status):
    monkeypatch.setattr("client.web.door.upstream.CONNECT_SECONDS", 0.1)
    gate = await start_gate("127.0.0.1:1", access=Access(secret=secret))
    async with gate.http.get(gate.url + path, headers={"Host": "10.1.2.3:8080"}) as response:
        assert response.status == status
    async with gate.http.get(gate.url + path, headers={"Host": "10.1.2.3", "Origin": "https://evil.org"}) as response:
        assert response.status == 403


async def test_half_requests_that_hold_all_descriptors_lose_them(start_fake, start_gate):
    """H21, with the limit of descriptors where the flood reaches it."""
    fake, _ = await start_fake()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "client.web", "--url", fake.url, "--port", "0", "--connects-per-minute", "10000"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
    )
    writers = []
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 30)).decode()
        port = int(line.split()[1].rpartition(":")[2].strip("/"))
        for _ in range(100):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\nHost: ")
            writers.append(writer)
        answer = b""
        async with asyncio.timeout(30):
            while b"200 OK" not in answer:  # 503 for as long as the way to the server finds no descriptor
                answer = await _raw(port, "GET /healthz HTTP/1.1\nHost: localhost\nConnection: close")
        assert os.listdir(f"/proc/{process.pid}/fd")
    finally:
        for writer in writers:
            writer.close()
        process.terminate()
        _, errors = await process.communicate()
    assert b"no descriptors are left" in errors
    assert b"Traceback" not in errors


OUT_OF_DESCRIPTORS = """
import asyncio, os, resource, sys
from client.web.gateway import make_app, make_runner
from client.web.call.call_book import CallBook
from client.web.door.access import Access
from client.web.door.upstream import Upstream

async def main():
    upstream = Upstream(sys.argv[1], "duplex")
    runner = make_runner(make_app(Access(), upstream, CallBook(2)))
    await runner.setup()
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    held = []
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        print(await upstream.is_ready())
    for each in held:
        os.close(each)
    print(await upstream.is_ready())
    await runner.cleanup()

asyncio.run(main())
"""


async def test_a_gateway_without_descriptors_outlives_a_first_look_at_its_server(start_fake):
    """gRPC, which begins when it is first needed, aborted the process, and all conversations with it."""
    fake, _ = await start_fake()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", OUT_OF_DESCRIPTORS, fake.url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    said, _ = await process.communicate()
    assert (said.decode().split(), process.returncode) == (["False", "True"], 0)


async def test_silent_sockets_do_not_keep_a_gateway_full(start_fake, start_gate, monkeypatch):
    """H16."""
    monkeypatch.setattr("client.web.call.call.UNBEGUN_SECONDS", 0.0)
    fake, _ = await start_fake()
    gate = await start_gate(fake.url, max_calls=2)
    async with contextlib.AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(gate.http.ws_connect(f"{gate.url}/v1/realtime")) for _ in range(2)]
        await asyncio.sleep(0.05)
        page = await stack.enter_async_context(gate.http.ws_connect(f"{gate.url}/v1/session"))
        await page.send_json({"type": "hello"})
        assert (await page.receive_json())["type"] == "welcome"
        assert len(gate.desk.book) == 2
        kinds = [(await silent[0].receive(timeout=10)).type for _ in range(3)]
        assert kinds[-1] is WSMsgType.CLOSE
    assert not fake.seen, "a page and sockets that say nothing cost the model nothing"


async def test_what_visits_left_is_collected_and_goes_back(start_gate, monkeypatch):
    """A soak's gateway grew by both: the collector by itself waits for some 400 visits."""
    returned, visit = threading.Event(), asyncio.Event()
    visit.itself = visit  # pyright: ignore[reportAttributeAccessIssue]
    left = weakref.ref(visit)
    monkeypatch.setattr("client.web.gateway.TIDY_SECONDS", 0.01)
    monkeypatch.setattr("ctypes.CDLL", lambda _: SimpleNamespace(malloc_trim=lambda _: returned.set()))
    gc.disable()
    try:
        del visit
        await start_gate("127.0.0.1:1")
        assert await asyncio.to_thread(returned.wait, 5)
        assert left() is None
    finally:
        gc.enable()
