"""One conversation held at the gateway: what goes up in real time, what comes back, and who is listening.

    client --> intake --> _speak: one unit every 160 ms --> DuplexSession --> _listen --> dialect --> outbox --> client

It outlives the client's socket. While no client is attached it is frozen: no unit is sent, so the model's time stands
still and costs nothing, and a client that comes back within the grace time goes on where it stopped. A connection to
the server that breaks is mended by the DuplexSession.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from client.stream import (
    DuplexClient,
    DuplexError,
    DuplexSession,
    MediaError,
    Resumed,
    UnitResponse,
    UnitShape,
    UserUnit,
)
from client.stream.units import Float32, UInt8

from ..rates import Bucket
from .fence import Fence
from .intake import Intake, Stamp
from .outbox import Journal, Kind, Message, Outbox, OutboxFull
from .personas import Personas
from .prompts import Prompts
from .unit_clock import UnitClock

log = logging.getLogger(__name__)

ANSWER_SECONDS = 10.0  # an unanswered unit ends the conversation
LAST_WORD_SECONDS = 10.0  # before a server that goes away ends the conversation
MAX_TRIES = 3  # to send a unit that the server refuses
UNBEGUN_SECONDS, QUIET_SECONDS = 10.0, 120.0  # of silence, before and after the start, that keep a place
PIXELS_PER_SECOND, PIXEL_BURST = 8e6, 33e6  # of pictures to decode: 25 of 640x480 a second; two of the largest at once


@dataclass
class SentUnit:
    """What is remembered of a unit until its answer is here. Times are seconds of time.monotonic()."""

    unit: UserUnit
    stamp: Stamp | None
    due: float  # when it was ready to leave
    at: float = 0.0  # when the stream took it
    tries: int = 0

    @property
    def pcm(self) -> Float32:
        return self.unit.pcm


class Dialect(Protocol):
    """Turns what the model does into messages of one protocol, by `Call.emit`."""

    async def on_unit(self, response: UnitResponse, sent: SentUnit, epoch: int) -> None:
        """A unit of the agent. epoch: what to emit its voice and words with."""

    def on_refused(self, error: DuplexError) -> None:
        """The server did not take what was typed; the conversation goes on without."""

    def on_mended(self, resumed: Resumed) -> None:
        """The connection to the server was lost for a while."""

    def on_leaving(self, seconds: float) -> None:
        """The server is going away; the conversation can go on for so long."""

    def on_end(self, error: DuplexError | None) -> None:
        """The conversation is over; None: as it should be."""


class Call:
    """One conversation. `key` is a capability: whoever knows it may take the conversation over."""

    def __init__(
        self,
        client: DuplexClient,
        *,
        live: bool,
        limit_seconds: float,
        resumable: bool = True,
        personas: Personas | None = None,
    ) -> None:
        self.key = secrets.token_urlsafe(18)
        self.shape: UnitShape = client.shape
        self.model: dict[str, Any] = {"name": client.model, "server": client.server, "parameters": client.parameters}
        self.prompts = Prompts.of(client.parameters)
        self.personas = personas or Personas()
        self.delegation = client.parameters.get("delegation", "")  # what the model writes to hand work over
        text_bytes = _whole(client.parameters.get("text_bytes", ""))
        self.intake = Intake(client.shape, live=live, limit_seconds=limit_seconds, text_bytes=text_bytes)
        self.resumable = resumable  # whether it waits for a client that is away
        self.pixels = Bucket(PIXELS_PER_SECOND, PIXEL_BURST)
        self.fence = Fence()
        self.journal = Journal()
        self.dialect: Dialect | None = None  # set by the socket before `start`
        self.answered = 0
        self.heard_at = time.monotonic()  # the newest message of the client
        self.closed = False
        self.error: DuplexError | None = None
        self.on_timed: Callable[[float], None] = lambda seconds: None  # a unit was answered after `seconds`
        self.on_frames: Callable[[UInt8], None] | None = None  # pictures of each unit, uint8 [4, H, W, 3]
        self.on_delegated: Callable[[int], None] = lambda unit: None  # the model handed work over in `unit`
        self.on_mended: list[Callable[[Call], None]] = []
        self.on_closed: list[Callable[[Call], None]] = []
        self._client = client
        self._outbox: Outbox | None = None
        self._attached = asyncio.Event()
        self._sent: dict[int, SentUnit] = {}
        self._refused: list[SentUnit] = []
        self._landed = asyncio.Event()
        self._last_sent = -1
        self._ending = self._interrupting = False
        self._left: float | None = None  # seconds for which the server still stays, once it goes away
        self._task: asyncio.Task[None] | None = None

    @property
    def started(self) -> bool:
        return self._task is not None

    @property
    def attached(self) -> bool:
        return self._attached.is_set()

    @property
    def last_sent(self) -> int:
        """Index of the newest unit that went to the model, -1 before the first."""
        return self._last_sent

    @property
    def yields(self) -> bool:
        """Whether the client has been silent for so long that somebody else may have its place."""
        return time.monotonic() - self.heard_at > (QUIET_SECONDS if self.started else UNBEGUN_SECONDS)

    # -- the client --------------------------------------------------------------------------------------------
    def attach(self, after: int | None = None) -> tuple[Outbox, int]:
        """A client is listening. after: the last message it has seen; what followed is replayed.

        Returns its outbox and the number of messages that are gone for good. An earlier client is cut off.
        """
        if self._outbox is not None:
            self._outbox.close("taken over")
        self._outbox = Outbox(self.fence)
        replay, missed = self.journal.after(after) if after is not None else ([], 0)
        for message in replay:
            self._put(message)
        self._attached.set()
        return self._outbox, missed

    def detach(self, outbox: Outbox) -> bool:
        """The client behind `outbox` is gone. False when another one has taken its place."""
        if self._outbox is not outbox:
            return False
        self._outbox = None
        self._attached.clear()
        self.intake.clear_pcm()  # it would be old when the client is back
        return True

    def emit(self, kind: Kind, data: str | bytes, epoch: int | None = None) -> None:
        """Sends a message to the client, or keeps it for the one that comes back. epoch: None passes every fence."""
        if kind == "video" or not self.resumable:
            message = Message(kind, data, epoch)
        else:
            message = Message(kind, data, epoch, self.journal.last + 1)
            self.journal.add(message)
        self._put(message)

    def wants_video(self) -> bool:
        """Whether a picture would be sent soon: no work for a client that cannot keep up."""
        return self._outbox is not None and self._outbox.room("video")

    def shed(self) -> dict[str, int]:
        """Messages that the present client lost because it read too slowly."""
        return dict(self._outbox.dropped) if self._outbox is not None else {}

    def interrupt(self) -> None:
        """Cancels what the agent is saying and what was typed to it. The server gives up the units that are under way;
        the rest of the run, which the model does not know to be unwanted, is held back by the fence."""
        self.fence.cut(self._last_sent)
        self.intake.clear_text()
        self._interrupting = self.started

    # -- the model ---------------------------------------------------------------------------------------------
    def start(self, options: Mapping[str, Any] | None = None) -> None:
        """Opens the session, once; errors come through `Dialect.on_end`. `voice` of the options names a persona."""
        if self.started or self.closed:
            return
        try:
            options = self.personas.applied(options or {}, self.shape)
        except MediaError as error:
            self._finish(DuplexError("UNAVAILABLE", str(error)))
            return
        session = self._client.session(None, options, timeout=ANSWER_SECONDS, reconnect=True, on_resume=self._mended)
        self._task = asyncio.create_task(self._run(session), name=f"call-{self.key[:6]}")

    def end(self) -> None:
        """The next unit is the last one."""
        self._ending = True
        self.intake.changed.set()
        if not self.started:
            self._finish(None)

    async def close(self, reason: str) -> None:
        """Ends it at once, whatever its state. Safe to call twice."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._finish(DuplexError("CANCELLED", reason))

    async def _run(self, session: DuplexSession) -> None:
        error: DuplexError | None = None
        try:
            async with session, asyncio.TaskGroup() as both:
                both.create_task(self._speak(session))
                both.create_task(self._listen(session))
        except* DuplexError as caught:
            error = next(e for e in caught.exceptions if isinstance(e, DuplexError))
        except* Exception as caught:
            log.error("conversation %s failed", self.key[:6], exc_info=caught)
            error = DuplexError("INTERNAL", "the gateway failed; its log says how")
        self._finish(error)

    async def _speak(self, session: DuplexSession) -> None:
        clock = UnitClock(time.monotonic())
        index = 0
        while True:
            if not self._attached.is_set():
                await self._attached.wait()
                clock = UnitClock(time.monotonic())
            await self._moment(clock)
            await self._send_again(session)
            now = time.monotonic()
            interrupt, self._interrupting = self._interrupting, False
            taken = self.intake.take(index, end=self._ending, interrupt=interrupt)
            clock.left(now, complete=taken.padded == 0, backlog=taken.backlog)
            self._last_sent = index
            await self._send(session, SentUnit(taken.unit, taken.stamp, due=now))
            if taken.unit.end:
                return
            index += 1

    async def _moment(self, clock: UnitClock) -> None:
        """Waits until the next unit should leave."""
        while not self._ending and (wait := clock.wait(time.monotonic(), self.intake.backlog)) > 0:
            self.intake.changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.intake.changed.wait(), wait)

    async def _send(self, session: DuplexSession, sent: SentUnit) -> None:
        self._sent[sent.unit.index] = sent
        sent.at = await session.send(sent.unit)

    async def _send_again(self, session: DuplexSession) -> None:
        """What the server refused, and with it whatever was sent after that: it takes units in order only."""
        while self._refused:
            while self._sent:
                self._landed.clear()
                await self._landed.wait()
            again, self._refused = self._refused, []
            for sent in again:
                await self._send(session, sent)

    async def _listen(self, session: DuplexSession) -> None:
        while True:
            try:
                response = await anext(session)
            except StopAsyncIteration:
                return
            except DuplexError as error:
                if error.fatal or session.ended or not self._sent:
                    raise
                self._refuse(error)
                continue
            sent = self._sent.pop(response.unit_index, None)
            if sent is None:
                raise DuplexError("INTERNAL", f"unit_index: the server answered unit {response.unit_index}, never sent")
            self._landed.set()
            self._hear_how_long(response.info.get("leaves_seconds"))
            self.answered += 1
            self.on_timed(response.received - sent.at)
            epoch = self.fence.stamp(response.unit_index, response.state)
            handed_over = response.text.count(self.delegation) if self.delegation else 0
            if handed_over:
                response = replace(response, text=response.text.replace(self.delegation, ""))
            if self.on_frames is not None:
                self.on_frames(response.frames)
            if self.dialect is not None:
                await self.dialect.on_unit(response, sent, epoch)
            for _ in range(handed_over):
                self.on_delegated(response.unit_index)

    def _hear_how_long(self, left: float | None) -> None:
        """Of a server that goes away the client is told twice: when that is known, and shortly before."""
        before, self._left = self._left, left
        if left is not None and self.dialect is not None and (before is None or left <= LAST_WORD_SECONDS < before):
            self.dialect.on_leaving(left)

    def _refuse(self, error: DuplexError) -> None:
        """The oldest unit was refused, which changed nothing at the server. Raises `error` if it would be again."""
        sent = self._sent.pop(min(self._sent))
        self._landed.set()
        sent.tries += 1
        if error.message.startswith("text:") and sent.unit.text:
            sent.unit = replace(sent.unit, text="")
            if self.dialect is not None:
                self.dialect.on_refused(error)
        elif not error.message.startswith("unit_index:") or sent.tries >= MAX_TRIES:
            raise error
        self._refused.append(sent)

    # -- inside ------------------------------------------------------------------------------------------------
    def _mended(self, resumed: Resumed) -> None:
        self.intake.clear_pcm()  # what was said in the meantime would make the user late for good
        if self.dialect is not None:
            self.dialect.on_mended(resumed)
        for listener in self.on_mended:
            listener(self)

    def _put(self, message: Message) -> None:
        if self._outbox is None:
            return
        try:
            self._outbox.put(message)
        except OutboxFull:
            self._outbox.close("too slow")  # the conversation waits for the client to come back

    def _finish(self, error: DuplexError | None) -> None:
        if self.closed:
            return
        self.closed, self.error = True, error
        if self.dialect is not None:
            self.dialect.on_end(error)
        if self._outbox is not None:
            self._outbox.close("ended")
        for listener in self.on_closed:
            listener(self)


def _whole(text: str) -> int | None:
    return int(text) if text.isdecimal() else None
