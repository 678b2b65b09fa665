"""Runs N users at once and in real time, each on a connection of its own, and collects their logs."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..stream import DuplexClient, Tls
from ..stream.units import UNIT_SECONDS
from .media import FACE, GOLDEN, SPEECH, Media
from .user import UnitLog, UserLog, talk

SETTLE_SECONDS = 0.3  # between the last connection and the first unit
RAMP_SECONDS = 0.05  # a user: sessions are opened one after the other, as visitors come


@dataclass(frozen=True)
class Plan:
    """One run. Of every user the first `warm_up` seconds are logged and not judged."""

    url: str
    sessions: int
    seconds: float
    model: str = "duplex"
    options: Mapping[str, Any] = field(default_factory=dict)
    warm_up: float = 2.0
    timeout: float = 10.0
    tls: Tls | None = None
    audio: Path = SPEECH
    video: Path = FACE

    @property
    def units(self) -> int:
        return max(1, round(self.seconds / UNIT_SECONDS))

    @property
    def warm_units(self) -> int:
        return min(self.units - 1, round(self.warm_up / UNIT_SECONDS))

    def __post_init__(self) -> None:
        if self.sessions < 1:
            raise ValueError(f"sessions: expected >= 1, got {self.sessions}")
        if not self.seconds > 0 or self.warm_up < 0:
            raise ValueError(f"seconds: expected > 0 with a warm-up >= 0, got {self.seconds} and {self.warm_up}")


@dataclass
class Run:
    """What happened. `gave_up`: the run was ended early, because its outcome was clear."""

    plan: Plan
    started: str
    users: list[UserLog]
    server: dict[str, Any]
    parameters: dict[str, str]
    media: dict[str, str]
    gave_up: bool = False

    def judged(self) -> list[UnitLog]:
        """Units sent after the warm-up."""
        return [unit for user in self.users for unit in user.units[self.plan.warm_units :]]

    @property
    def planned(self) -> int:
        """Units that were due after the warm-up, sent or not: the base of every share."""
        return sum(max(0, user.planned - self.plan.warm_units) for user in self.users)

    @property
    def on_time_share(self) -> float:
        return sum(unit.on_time for unit in self.judged()) / self.planned if self.planned else 0.0


async def run(
    plan: Plan,
    *,
    stop: asyncio.Event | None = None,
    give_up: Callable[[Run], bool] | None = None,
    on_tick: Callable[[Run], None] | None = None,
) -> Run:
    """Holds the plan's conversations. Raises DuplexError if the server is not there, MediaError for unusable files.

    stop: set it to end early, within half a second.  give_up: asked as often; true ends the run.  on_tick: called then.
    """
    over = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        clients: list[DuplexClient] = []
        for _ in range(plan.sessions):
            client = await DuplexClient.connect(plan.url, model=plan.model, timeout=plan.timeout, tls=plan.tls)
            clients.append(await stack.enter_async_context(client))
        media = await asyncio.to_thread(Media.read, clients[0].shape, plan.audio, plan.video)
        begin = time.monotonic() + SETTLE_SECONDS
        users = [UserLog(i, begin + start_seconds(i), plan.units) for i in range(plan.sessions)]
        outcome = Run(
            plan,
            datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            users,
            clients[0].server,
            clients[0].parameters,
            media.files,
        )
        talking = [
            asyncio.create_task(talk(client, user, media, options=plan.options, stop=over, timeout=plan.timeout))
            for client, user in zip(clients, users, strict=True)
        ]
        pending = set(talking)
        try:
            while pending:
                done, pending = await asyncio.wait(pending, timeout=0.5)
                for task in done:
                    task.result()  # a crash of the driver itself
                if on_tick is not None:
                    on_tick(outcome)
                if stop is not None and stop.is_set():
                    over.set()
                elif not over.is_set() and give_up is not None and give_up(outcome):
                    outcome.gave_up = True
                    over.set()
        finally:
            for task in talking:
                task.cancel()
            await asyncio.gather(*talking, return_exceptions=True)
        if over.is_set():
            end = max((unit.woke for user in users for unit in user.units), default=begin)
            for user in users:
                user.stopped(end)
    return outcome


def start_seconds(user: int) -> float:
    """When a user begins: a few more in every unit, and never in step (golden-ratio phases, for any number)."""
    return int(user * RAMP_SECONDS / UNIT_SECONDS) * UNIT_SECONDS + user * GOLDEN % 1.0 * UNIT_SECONDS
