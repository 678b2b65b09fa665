"""Where a client connects, and what it finds there."""

from __future__ import annotations

import re

import pytest

from client.stream.client import DuplexClient
from client.stream.errors import DuplexError
from client.stream.units import UnitShape

pytestmark = pytest.mark.unit


async def test_connect_reads_the_shapes_and_what_the_server_says_about_itself(start_fake):
    fake, _ = await start_fake()
    async with await DuplexClient.connect(fake.url) as client:
        assert client.shape == fake.shape
        assert client.shape.sample_rate == 16_000
        assert client.server["name"] == "fake"
        assert client.parameters == {"weights": "random (test double)"}
        assert await client.is_ready()


@pytest.mark.parametrize("url", ["http://127.0.0.1:8001", "127.0.0.1", "127.0.0.1:port", "host:70000", "", "a b:1"])
async def test_what_is_no_address_is_refused_at_once(url):
    with pytest.raises(DuplexError, match=re.escape(f"INVALID_ARGUMENT: url: expected HOST:PORT, got {url!r}")):
        await DuplexClient.connect(url, timeout=60)


async def test_loopback_is_reached_without_the_proxy_of_the_environment(start_fake, monkeypatch):
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    fake, _ = await start_fake()
    async with await DuplexClient.connect(fake.url, timeout=5) as client:
        assert await client.is_ready()


async def test_no_server_at_all():
    with pytest.raises(DuplexError, match=r"UNAVAILABLE: 127.0.0.1:1: model duplex was not ready within 0.5 s"):
        await DuplexClient.connect("127.0.0.1:1", timeout=0.5)


async def test_a_model_that_is_not_ready(start_fake):
    fake, _ = await start_fake(ready=False)
    with pytest.raises(DuplexError, match=r"not ready within 0.5 s"):
        await DuplexClient.connect(fake.url, timeout=0.5)


async def test_a_server_that_goes_away_between_two_questions(start_fake):
    """Behind a balancer the next one that is asked is another one."""
    fake, _ = await start_fake(unloaded=2)
    async with await DuplexClient.connect(fake.url, timeout=5) as client:
        assert client.shape == fake.shape
    assert fake.unloaded == 0


async def test_a_model_of_another_kind(start_fake):
    fake, _ = await start_fake(shape=UnitShape(samples=2561, height=64, width=64))
    with pytest.raises(DuplexError, match=r"INVALID_ARGUMENT: model duplex: .* pcm FP32 .*, got FP32 \[2561\]"):
        await DuplexClient.connect(fake.url)
