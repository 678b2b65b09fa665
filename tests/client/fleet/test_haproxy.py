"""Three real servers behind the real HAProxy, configured as in build/deploy: where sessions go, and come back."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import ClientSession, ClientWebSocketResponse, CookieJar, WSMsgType

from client.fleet.machines import Balancer, Member, Program, fleet
from client.stream import DuplexClient, DuplexError, DuplexSession, Pacer, Reconnect, Resumed
from client.stream.line import Line
from client.stream.units import quiet
from client.web.call.call_book import YOUNG_UNITS
from client.web.page import frames

pytestmark = pytest.mark.server

EACH = 8  # sessions of a server
NAMES = ("s1", "s2", "s3")
RESUMABLE = {"resume": True}  # so that the first answer says whose session it is
AGAIN = Reconnect(starts=5)
ANEW = Reconnect(starts=5, anew=True)
LOOK = 1.0  # seconds in which HAProxy has heard from every server


@dataclass(frozen=True)
class Machines:
    members: dict[str, Member]  # by NAMES
    fourth: Member  # joins where a test starts it
    balancer: Balancer


@pytest.fixture(scope="module")
def machines(mini_engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    if shutil.which("haproxy", path="/usr/sbin:/usr/bin") is None:
        pytest.skip("haproxy is not installed: apt-get install haproxy")
    flags = ("--admit-all", "--max-sessions", str(EACH), "--pages", "512", "--drain-seconds", "60", "--keep-steps")
    with fleet(mini_engines, tmp_path_factory.mktemp("fleet"), (*NAMES, "s4"), *flags, up=3) as (members, balancer):
        yield Machines({member.name: member for member in members[:3]}, members[3], balancer)


@pytest.fixture
async def client(machines: Machines) -> AsyncIterator[DuplexClient]:
    """A client of the whole fleet, which is up and empty."""
    members, balancer = machines.members, machines.balancer
    for member in members.values():
        if room(member)["draining"]:
            await asyncio.to_thread(member.wait, 70)
        if not member.runs:
            member.start()
    for member in members.values():
        await asyncio.to_thread(member.wait_ready)
        await wait(lambda member=member: room(member)["free"] == EACH, 45.0)  # a lost session stays for 30 s
    await asyncio.to_thread(balancer.wait, len(NAMES))
    await asyncio.sleep(LOOK)
    async with await DuplexClient.connect(balancer.url) as client:
        yield client


def room(member: Member) -> dict[str, Any]:
    return (member.said() or {}).get("room", {"free": -1, "draining": False})


def resumed(member: Member) -> int:
    return (member.said() or {})["models"]["duplex"].get("sessions.resumed", 0)


async def wait(what: Any, seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not await asyncio.to_thread(what):
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


async def ask(session: DuplexSession, client: DuplexClient, index: int, *, end: bool = False) -> Any:
    await session.send(quiet(index, client.shape, end=end))
    return await asyncio.wait_for(anext(session), 15)


async def begin(session: DuplexSession, client: DuplexClient) -> str:
    """The first unit of a session; the name of its server."""
    token = (await ask(session, client, 0)).info["home"]
    payload = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["srv"]


async def until_refused(session: DuplexSession, client: DuplexClient) -> None:
    for index in range(1, 9):
        await ask(session, client, index)


async def held(stack: AsyncExitStack, client: DuplexClient, count: int, **more: Any) -> list[tuple[str, DuplexSession]]:
    """Sessions that have begun, with the names of their servers. They say goodbye when they leave."""
    found = []
    for _ in range(count):
        session = await stack.enter_async_context(client.session(options=RESUMABLE, **{"reconnect": AGAIN, **more}))
        found.append((await begin(session, client), session))
    return found


async def at(name: str, stack: AsyncExitStack, client: DuplexClient) -> DuplexSession:
    """A session of that server: others are opened until there is one."""
    for _ in range(12):
        [(home, session)] = await held(stack, client, 1)
        if home == name:
            return session
    raise AssertionError(f"no session came to {name}")


async def test_sixty_sessions_spread_and_a_full_fleet_says_so(client: DuplexClient, machines: Machines) -> None:
    now, served, most = Counter[str](), Counter[str](), Counter[str]()
    turns = asyncio.Semaphore(2 * EACH)

    async def visit() -> None:
        async with turns, client.session(options=RESUMABLE) as session:
            home = await begin(session, client)
            now[home] += 1
            served[home] += 1
            most[home] = max(most[home], now[home])
            for index in range(1, 4):
                await ask(session, client, index, end=index == 3)
            now[home] -= 1

    await asyncio.gather(*(visit() for _ in range(60)))
    assert served.total() == 60
    assert set(served) == set(NAMES)
    assert max(most.values()) <= EACH
    assert max(served.values()) - min(served.values()) <= 15, served
    for member in machines.members.values():  # a place that is being freed is none yet
        await wait(lambda member=member: room(member)["free"] == EACH)
    await asyncio.sleep(LOOK)
    async with AsyncExitStack() as stack:
        homes = Counter(home for home, _ in await held(stack, client, 3 * EACH))
        assert homes == dict.fromkeys(NAMES, EACH), "each is filled, and none above what it takes"
        await asyncio.sleep(LOOK)
        async with client.session(options=RESUMABLE) as session:
            with pytest.raises(DuplexError, match=r"RESOURCE_EXHAUSTED: .*retry after 1 s") as caught:
                await ask(session, client, 0)
            assert caught.value.retry_after == 1.0
    members = machines.members
    await wait(lambda: all(room(member)["free"] == EACH for member in members.values()))


async def test_a_killed_server_takes_its_own_sessions_alone(client: DuplexClient, machines: Machines) -> None:
    members = machines.members
    news: list[Resumed] = []
    async with AsyncExitStack() as stack:
        plain = await held(stack, client, 3, reconnect=False)
        loyal = await held(stack, client, 3, reconnect=ANEW, on_resume=news.append)
        assert {home for home, _ in plain} == {home for home, _ in loyal} == set(NAMES)
        members["s2"].kill()
        for home, session in plain:
            if home != "s2":
                assert not (await ask(session, client, 1, end=True)).lost
                continue
            with pytest.raises(DuplexError, match=r"UNAVAILABLE: .*") as caught:
                await asyncio.wait_for(anext(session), 5)
            assert caught.value.fatal
        [lost] = [session for home, session in loyal if home == "s2"]
        index = 0
        while not news:
            index += 1
            await ask(lost, client, index)
        assert news[0].anew
        assert not (await ask(lost, client, index + 1)).lost
        for home, session in loyal:
            if home != "s2":
                assert not (await ask(session, client, 1)).lost
    assert len(news) == 1
    members["s2"].wait(10)


async def test_a_busy_server_keeps_its_sessions(client: DuplexClient, machines: Machines) -> None:
    """It answers the balancer's questions late."""
    async with AsyncExitStack() as stack:
        [(home, session)] = await held(stack, client, 1, reconnect=False)
        with machines.members[home].busy():
            await asyncio.sleep(1.5)
            assert not (await ask(session, client, 1)).lost
        assert not (await ask(session, client, 2)).lost


@pytest.mark.slow
async def test_a_rolling_update_fails_nobody(client: DuplexClient, machines: Machines) -> None:
    """Each server is drained, ends by itself once it is empty, and is started again; people come and go meanwhile."""
    members, balancer = machines.members, machines.balancer
    over, served = asyncio.Event(), Counter[str]()

    async def visitor(number: int) -> None:
        """One short conversation after the other, in real time."""
        while not over.is_set():
            async with client.session(options=RESUMABLE, reconnect=AGAIN) as session:
                units = (quiet(index, client.shape, end=index == 5) for index in range(6))
                talking = asyncio.create_task(session.play(units, Pacer()))
                async for answer in session:
                    served["leaving" if "leaves_seconds" in answer.info else "units"] += 1
                await talking
                served["sessions"] += 1

    async with asyncio.TaskGroup() as group:
        visitors = [group.create_task(visitor(number)) for number in range(4)]
        for member in members.values():
            async with AsyncExitStack() as stack:
                stays = await at(member.name, stack, client)
                member.drain()
                await wait(lambda member=member: room(member)["draining"])
                await asyncio.sleep(LOOK)
                left = (await ask(stays, client, 1)).info["leaves_seconds"]
                assert 0 < left < 60
                others = Counter(home for home, _ in await held(stack, client, 6))
                assert member.name not in others
                assert member.runs, "it waits for the one who is there"
                await ask(stays, client, 2, end=True)
            assert await asyncio.to_thread(member.wait, 15) == 0
            member.start()
            await asyncio.to_thread(member.wait_ready)
            await asyncio.to_thread(balancer.wait, len(NAMES))
        over.set()
        await asyncio.gather(*visitors)
    assert served["sessions"] > 4


class Cut:
    """TCP to the balancer that can be cut: connections are reset, and at once new ones are let through."""

    def __init__(self, url: str) -> None:
        self._host, self._port = url.split(":")
        self._open: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()

    def cut(self) -> None:
        while self._open:
            self._open.pop().transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._host, int(self._port))
        self._open |= {writer, far_writer}
        await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer), return_exceptions=True)


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(65536):
        sink.write(data)
        await sink.drain()
    sink.close()


async def test_fifty_of_fifty_come_back_to_their_server(client: DuplexClient, machines: Machines) -> None:
    members, fourth, balancer = machines.members, machines.fourth, machines.balancer
    cut = Cut(balancer.url)
    async with AsyncExitStack() as stack:
        through = await stack.enter_async_context(cut)
        people = []
        for _ in range(10):
            mine = await stack.enter_async_context(await DuplexClient.connect(through))
            session = await stack.enter_async_context(mine.session(options=RESUMABLE, reconnect=True))
            people.append((await begin(session, mine), session, mine))
        assert {home for home, *_ in people} == set(NAMES)
        index, before = 0, {name: resumed(member) for name, member in members.items()}
        for turn in range(5):
            if turn == 1:
                members["s1"].drain()  # it leaves, and keeps whom it has
                await wait(lambda: room(members["s1"])["draining"])
                await asyncio.sleep(LOOK)
            if turn == 3:
                fourth.start()  # and one joins, which has more room than any
                await asyncio.to_thread(fourth.wait_ready)
                await asyncio.to_thread(balancer.wait, len(NAMES))  # s1 takes nobody
                await asyncio.sleep(LOOK)
                assert {home for home, _ in await held(stack, client, 2)} == {fourth.name}
            cut.cut()
            while not all(session.course.resumed == turn + 1 for _, session, _ in people):
                index += 1
                assert index < 40
                await asyncio.gather(*(ask(session, mine, index) for _, session, mine in people))
        assert [session.course.resumed for _, session, _ in people] == [5] * 10
        lived = Counter(home for home, *_ in people)
        await wait(lambda: all(resumed(m) - before[name] >= 5 * lived[name] for name, m in members.items()))
    fourth.drain()
    for member in (members["s1"], fourth):
        assert await asyncio.to_thread(member.wait, 30) == 0


async def test_a_page_finds_its_gateway_and_a_server_through_two_balancers(
    client: DuplexClient, machines: Machines, tmp_path: Path
) -> None:
    """WebSockets through HAProxy to one of two gateways, which reach the fleet through HAProxy like everybody."""
    balancer = machines.balancer
    async with AsyncExitStack() as stack:
        for number, port in enumerate(balancer.gateways):
            stack.enter_context(Gateway(port, balancer.url, tmp_path / f"g{number}.log"))
        await wait(lambda: [row["status"] for row in balancer.servers("gateways").values()] == ["UP", "UP"], 30)
        sockets = []
        for _ in range(2):
            http = await stack.enter_async_context(ClientSession(cookie_jar=CookieJar(unsafe=True)))
            page = await http.get(f"http://{balancer.pages}/")
            assert page.status == 200
            gateway = page.cookies["wan_gateway"].value
            socket = await _hello(http, balancer.pages)
            welcome = await socket.receive_json(timeout=20)
            sound = frames.pack(frames.PCM16, 0, bytes(2 * client.shape.samples))
            await socket.send_bytes(sound)
            while (unit := await _next_unit(socket))["unit"] <= YOUNG_UNITS:
                pass
            sockets.append((http, gateway, socket, welcome, unit))
        assert {gateway for _, gateway, *_ in sockets} == {"g1", "g2"}
        for http, _, socket, welcome, unit in sockets:
            assert socket._response.connection is not None
            socket._response.connection.transport.abort()
            back = await _hello(http, balancer.pages, resume={"session": welcome["session"], "after": unit["seq"]})
            assert (await back.receive_json(timeout=20)).get("resumed"), "the cookie brings it back to its gateway"
            await _next_unit(back)
        realtime = await stack.enter_async_context(http.ws_connect(f"http://{balancer.pages}/v1/realtime?model=duplex"))
        assert (await realtime.receive_json(timeout=20))["type"] == "session.created"


class Gateway(Program):
    def __init__(self, port: int, url: str, log: Path) -> None:
        self._begin([sys.executable, "-m", "client.web", "--url", url, "--port", str(port)], log)

    def __enter__(self) -> Gateway:
        return self


async def _hello(http: ClientSession, at: str, **more: Any) -> ClientWebSocketResponse:
    """As a page of that address says it."""
    socket = await http.ws_connect(
        f"http://{at}/v1/session", protocols=("wan.session.v1",), origin=f"http://{at}", autoclose=True
    )
    await socket.send_json({"type": "hello", **more})
    return socket


async def _next_unit(socket: ClientWebSocketResponse) -> dict[str, Any]:
    while True:
        message = await socket.receive(timeout=20)
        assert message.type in (WSMsgType.TEXT, WSMsgType.BINARY), message
        if message.type is WSMsgType.TEXT and (said := json.loads(message.data))["type"] == "unit":
            return said


async def test_a_forged_token_is_refused_and_logged(
    client: DuplexClient, machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    members, balancer = machines.members, machines.balancer
    forged = jwt.encode({"srv": "s2", "sid": "int:1"}, b"guessed" * 8, "HS256")
    plain = Line.stream
    async with AsyncExitStack() as stack:
        monkeypatch.setattr(Line, "stream", lambda self, home="": plain(self, forged))
        homes = [home for home, _ in await held(stack, client, 6)]
        assert Counter(homes) == dict.fromkeys(NAMES, 2), "nobody chooses a server"
        monkeypatch.undo()
        cut = Cut(balancer.url)
        through = await stack.enter_async_context(cut)
        mine = await stack.enter_async_context(await DuplexClient.connect(through))
        session = await stack.enter_async_context(mine.session(options=RESUMABLE, reconnect=True))
        await begin(session, mine)
        session._home_token = forged
        cut.cut()
        with pytest.raises(DuplexError, match="INVALID_ARGUMENT: ") as caught:
            await until_refused(session, mine)
        assert "options.home: expected the token of this session's first answer" in caught.value.message
    await wait(lambda: "FORGED" in balancer.log.read_text())
    logs = [member.log.parent / name / "server.log" for name, member in members.items()]
    assert any("a forged home token was refused" in log.read_text(errors="replace") for log in logs)
