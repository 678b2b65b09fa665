"""Who comes to the fleet and what happens to it meanwhile: open-loop visitors, a kill, a drain, a new server."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..loadtest.media import Media
from ..loadtest.user import UserLog, talk
from ..stream import DuplexClient, DuplexError, Reconnect, Resumed
from ..stream.units import UNIT_SECONDS
from .machines import Balancer, Member

LOOK_SECONDS = 0.5
POLICY = Reconnect(starts=5, anew=True)
LEAST_SECONDS = 2.0  # of a conversation


@dataclass(frozen=True)
class Visits:
    """Visitors come at random, `rate` a second for `seconds`, and talk for `mean` seconds on average. With this seed
    and the demo's rates up to five talk at once, and somebody at every event."""

    seconds: float
    rate: float
    mean: float
    seed: int = 2


@dataclass
class Visitor:
    """One of them. news: what it was told of outages."""

    log: UserLog
    news: list[Resumed] = field(default_factory=list)
    error: DuplexError | None = None


@dataclass
class Look:
    """What the servers said at one moment (seconds since the beginning): name -> room, or None where none answered."""

    at: float
    rooms: dict[str, dict[str, Any] | None]


@dataclass
class Story:
    """All that happened. Times are seconds since `began` (time.monotonic())."""

    began: float
    visitors: list[Visitor] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    events: list[tuple[float, str]] = field(default_factory=list)

    def happened(self, what: str, say: Callable[[str], None]) -> None:
        self.events.append((time.monotonic() - self.began, what))
        say(f"{self.events[-1][0]:6.1f} s  {what}")


async def run(members: list[Member], balancer: Balancer, visits: Visits, say: Callable[[str], None]) -> Story:
    """Members: those that run, and the one that joins, as the last."""
    story = Story(time.monotonic())
    over = asyncio.Event()
    looking = asyncio.create_task(_look(story, members, over))
    acting = asyncio.create_task(_act(story, members, visits.seconds, say))
    try:
        await _receive(story, balancer.url, visits)
        await acting
    finally:
        over.set()
        acting.cancel()
        await asyncio.gather(looking, acting, return_exceptions=True)
    return story


async def _act(story: Story, members: list[Member], seconds: float, say: Callable[[str], None]) -> None:
    """A quarter in, the fullest is killed; at two fifths, the next drains and is replaced; at seven tenths, one more
    joins."""
    *running, joining = members

    async def until(share: float) -> None:
        await asyncio.sleep(max(0.0, story.began + share * seconds - time.monotonic()))

    async def fullest() -> Member:
        rooms = await _rooms(running)
        return max(running, key=lambda member: (rooms[member.name] or {}).get("admitted", -1))

    await until(0.25)
    killed = await fullest()
    killed.kill()
    story.happened(f"{killed.name} is killed", say)
    running.remove(killed)
    await until(0.4)
    drained = await fullest()
    drained.drain()
    story.happened(f"{drained.name} drains", say)
    code = await asyncio.to_thread(drained.wait, 60.0)
    story.happened(f"{drained.name} is empty, and ends (exit code {code})", say)
    drained.start()
    await asyncio.to_thread(drained.wait_ready)
    story.happened(f"{drained.name} is back", say)
    await until(0.7)
    joining.start()
    await asyncio.to_thread(joining.wait_ready)
    story.happened(f"{joining.name} joins", say)


async def _rooms(members: list[Member]) -> dict[str, dict[str, Any] | None]:
    said = await asyncio.gather(*(asyncio.to_thread(member.said) for member in members))
    return {m.name: answer and answer.get("room") for m, answer in zip(members, said, strict=True)}


async def _look(story: Story, members: list[Member], over: asyncio.Event) -> None:
    while not over.is_set():
        rooms = await _rooms(members)
        story.looks.append(Look(time.monotonic() - story.began, rooms))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), LOOK_SECONDS)


async def _receive(story: Story, url: str, visits: Visits) -> None:
    """Lets visitors in at their times, whatever has become of those before."""
    rng = random.Random(visits.seed)
    async with await DuplexClient.connect(url) as client:
        media = await asyncio.to_thread(Media.read, client.shape)
    at, talking = 0.0, set[asyncio.Task[None]]()
    while (at := at + rng.expovariate(visits.rate)) < visits.seconds:
        length = max(LEAST_SECONDS, rng.expovariate(1 / visits.mean))
        await asyncio.sleep(max(0.0, story.began + at - time.monotonic()))
        log = UserLog(len(story.visitors), story.began + at, round(length / UNIT_SECONDS))
        story.visitors.append(Visitor(log))
        talking.add(asyncio.create_task(_visit(story.visitors[-1], url, media)))
    await asyncio.gather(*talking)


async def _visit(visitor: Visitor, url: str, media: Media) -> None:
    try:
        async with await DuplexClient.connect(url) as client:
            never = asyncio.Event()
            await talk(
                client, visitor.log, media, options={}, stop=never, reconnect=POLICY, on_resume=visitor.news.append
            )
    except DuplexError as error:
        visitor.log.error = error
    visitor.error = visitor.log.error
