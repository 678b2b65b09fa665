"""`DuplexSession`: one conversation over a gRPC stream, and over further ones where a connection is lost.

Who does what: `send` waits until fewer units are unanswered than the server takes, and hands the encoded unit to gRPC.
One reader task takes responses off the socket, stamps the time of arrival, and puts them into a bounded queue, from
which the iterator serves. A consumer that stops reading stops the reader, and so the sender: nothing grows. A second
task looks now and then whether an answer is overdue, and ends the stream if so.

With a `Reconnect` policy the reader mends a broken stream: it closes the gate to senders, gives blank answers for what
was under way, dials until the server is back, and opens the gate for one unit, which resumes the session, or starts
another one where that is lost. The numbers are the business of `Course`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Literal

import grpc

from . import wire
from .course import Course
from .errors import DuplexError, from_server
from .flight import Flight, Inbox, Owed
from .line import Line, dial, transport_error
from .pacing import Pacer
from .reconnect import Outage, Reconnect, Resumed, gone, resumable, startable
from .units import Served, UnitResponse, UserUnit, quiet

POLL_SECONDS = 0.25  # how often it is looked whether an answer is overdue
CLOSE_SECONDS = 1.0  # after the last answer: how long the server may take to close the stream by itself
GOODBYE_SECONDS = 0.5  # for a session that is left early to tell the server
_END: Any = grpc.aio.EOF  # pyright: ignore[reportAttributeAccessIssue]


class DuplexSession:
    """One conversation. Send units in order, the last with `end`; iterate to receive one response a unit.

    Iterating raises DuplexError. After one that is not `fatal` (a refused unit: send it again, mended) go on iterating.
    Leaving the `async with` block before the end cancels the stream; the server then drops the session.
    With `reconnect`, units whose answers were lost get a response that is `lost`; `course` counts them, the outages,
    and the units that `play` left out.
    """

    def __init__(
        self,
        served: Served,
        line: Line,
        session_id: int | str,
        options: Mapping[str, Any] | None = None,
        timeout: float = 10.0,
        reconnect: Reconnect | None = None,
        on_resume: Callable[[Resumed], None] | None = None,
    ) -> None:
        self.session_id = session_id
        # A stream that is held open shows the server that its client is gone. It cannot be the server's own default:
        # perf_analyzer sends the next request of a sequence when the one before it has ended, and would wait for ever.
        self.options: dict[str, Any] = {"hold_open": True, **(options or {})}
        if reconnect is not None and self.options.setdefault("resume", True) is not True:
            raise ValueError(f"options.resume: expected true with reconnect, got {self.options['resume']!r}")
        self.sent = 0
        self.ended = False
        self.course = Course(served.shape)
        self._served, self._home, self._line = served, line, line  # home: the line that belongs to the client
        self._timeout, self._reconnect, self._on_resume = timeout, reconnect, on_resume
        self._flight, self._inbox = Flight(served.unanswered), Inbox()
        self._reading_since: float | None = None  # None: the reader waits for its consumer
        self._verdict: DuplexError | None = None  # why the watch has cancelled the stream ..
        self._over = False  # .. or that it did so after the last answer
        self._leaving = self._moving = False
        self._struck: Owed | None = None  # the unit that got the error which ended the session
        self._starts = 1  # how often this session was asked for in a row ..
        self._pauses = (reconnect or Reconnect()).pauses()  # .. and how long to wait before it is asked for again
        self._home_token = ""  # of a fleet's server: shown when the session is resumed
        self._failure: DuplexError | None = None
        self._call: Any = None
        self._tasks: tuple[asyncio.Task[None], ...] = ()  # reader and watch

    @property
    def reconnecting(self) -> bool:
        """Whether the connection is lost and the session not yet resumed."""
        return self.course.outage is not None and self._failure is None

    async def __aenter__(self) -> DuplexSession:
        self._call = self._line.stream()
        reader = asyncio.create_task(self._read(), name=f"duplex-reader-{self.session_id}")
        self._tasks = reader, asyncio.create_task(self._watch(), name=f"duplex-watch-{self.session_id}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancels what is still under way. Safe to call twice."""
        try:
            await self._say_goodbye()
        finally:
            outage = self.course.outage
            where = f" while the connection was lost ({outage.reason})" if outage is not None else ""
            self._failure = self._failure or DuplexError("CANCELLED", f"the session was closed by this client{where}")
            if self._call is not None:
                self._call.cancel()
            for task in self._tasks:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            self._call = None  # gRPC keeps the connection for a call that somebody keeps: in a traceback, for instance
            self._flight.end()
            if self._line is not self._home:
                await self._line.close()
            self._inbox.close(self._failure)

    # -- sending -----------------------------------------------------------------------------------------------
    async def send(self, unit: UserUnit) -> float:
        """Hands one unit to the stream, once there is room for it, and returns the moment (time.monotonic()).

        Raises ValueError for a unit of the wrong shape, DuplexError when the session is over.
        """
        await self._turn(unit)
        return await self._hand_over(unit)

    async def play(
        self, units: Iterable[UserUnit], pacer: Pacer, on_sent: Callable[[UserUnit, float], None] | None = None
    ) -> None:
        """Sends units in real time, each when it would be complete if it were spoken now.

        The next unit is made in a thread while this one waits, so that decoding never stops the event loop. When a
        lost connection is back, units are left out until one comes that is not older than a unit, but for the last.
        """
        source = iter(units)
        while (unit := await asyncio.to_thread(next, source, None)) is not None:
            await pacer.wait(unit.index)
            if await self._turn(unit, math.inf if unit.end else pacer.deadline(unit.index)):
                sent = await self._hand_over(unit)
                if on_sent is not None:
                    on_sent(unit, sent)
            if not unit.end:
                await pacer.wait_to_make(unit.index + 1)

    async def _turn(self, unit: UserUnit, latest: float = math.inf) -> bool:
        """Waits until one more unit may be under way. False: it fell into an outage, and it is later than `latest`."""
        unit.check(self._served.shape)
        if self._failure is None and self.ended:
            raise DuplexError("INVALID_ARGUMENT", f"unit {unit.index}: the session has ended with the unit before it")
        await self._flight.turn()  # ends at the latest when the reader finds an answer overdue
        if self._failure is not None:
            self._flight.give_back()
            raise self._failure
        if self.course.outage is None or time.monotonic() <= latest:
            return True
        self._flight.give_back()
        self.course.skip(unit)
        return False

    async def _hand_over(self, unit: UserUnit) -> float:
        now = time.monotonic()
        options = None if self.sent else self.options
        outage = self.course.outage
        resuming = outage is not None  # with this unit, and others wait for its answer
        if outage is not None:
            options = self.options if outage.anew else self._resuming_options()
        unit, owed = self.course.leave(unit, now)
        request = wire.encode(self._served.model, unit, self.session_id, options)
        self._flight.begin(owed, alone=resuming)
        self.sent += 1
        self.ended = unit.end
        call = self._call
        try:
            await call.write(request)
            if unit.end:
                await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the stream is gone: the reader knows why and tells the consumer
        except asyncio.CancelledError:
            if _cancelled():
                raise
        finally:
            self._flight.written()
        return now

    def _resuming_options(self) -> dict[str, Any]:
        home = {"home": self._home_token} if self._home_token else {}
        return {name: self.options[name] for name in ("resume", "hold_open")} | home

    async def move(self) -> None:
        """Ends this session at its server and begins another one with the same options, on another server where this
        one is going away (`info["leaves_seconds"]`). What is under way is answered first; the history stays behind,
        and `on_resume` hears of it. Raises DuplexError when the session is over, ValueError without `reconnect`."""
        if self._reconnect is None:
            raise ValueError("move: expected a session with reconnect, got one without")
        if self._failure is not None or self.ended:
            raise self._failure or DuplexError("INVALID_ARGUMENT", "move: the session has ended")
        if self.course.outage is None and not self._moving and self.course.answered:
            self._moving, call = True, self._call
            self._flight.close_gate()
            await self._flight.settle()
            last = quiet(self.course.next - self.course.shift, self._served.shape, end=True)
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await call.write(wire.encode(self._served.model, last, self.session_id))
                await call.done_writing()

    async def _say_goodbye(self) -> None:
        """Tells the server that nobody will resume a session that is left early: silence, and the end flag."""
        if self._reconnect is None or self.ended or self._failure is not None or self.reconnecting or not self.sent:
            return
        self._leaving = True
        with contextlib.suppress(TimeoutError, DuplexError):
            async with asyncio.timeout(GOODBYE_SECONDS):
                await self.send(quiet(self.course.next, self._served.shape, end=True))
                await asyncio.wait(self._tasks[:1])

    # -- receiving ---------------------------------------------------------------------------------------------
    def __aiter__(self) -> DuplexSession:
        return self

    async def __anext__(self) -> UnitResponse:
        return await self._inbox.next()

    async def _read(self) -> None:
        """The reader: one stream after the other."""
        try:
            while (last := await self._receive()) is not None and (way := self._way_on(last)) is not None:
                await self._come_back(last, anew=way == "anew")
        except DuplexError as error:
            last = error
        self._failure = last
        self._call.cancel()
        self._flight.end()  # a sender that waits finds out about the failure
        await self._inbox.put(last)

    async def _receive(self) -> DuplexError | None:
        """Takes responses off one stream until it is over; why, unless all is said."""
        try:
            while True:
                self._reading_since = time.monotonic()
                message = await self._call.read()
                received = time.monotonic()
                # The watch looks on: where the network is gone in the middle of a write, this wait has no end.
                await self._flight.settle()
                self._reading_since = None
                if message is _END:
                    if not self._flight and self.ended:
                        return None
                    closed = f"the server closed the stream with {len(self._flight)} units unanswered"
                    return DuplexError("UNAVAILABLE", f"{self._served.url}: {closed}", broken=True)
                if self._moving and not self._flight:
                    continue  # the answer to the unit that ended the old session
                item = self._taken(message, received)
                if isinstance(item, DuplexError) and item.fatal:
                    return item
                if not self._leaving:
                    await self._inbox.put(item)
        except grpc.aio.AioRpcError as error:
            return transport_error(self._served.url, error)
        except DuplexError as error:
            return error
        except asyncio.CancelledError:
            if _cancelled():
                raise
            if self._over:
                return None
            return self._verdict or DuplexError("CANCELLED", "the stream was cancelled under the session", broken=True)

    async def _watch(self) -> None:
        """Ends the stream when an answer is overdue, or when the server keeps it open after the last answer."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            since, now = self._reading_since, time.monotonic()
            if since is None or self._verdict is not None:  # a server is not late while this side was not reading
                continue
            oldest = max(self._flight.oldest, since) if self._flight.oldest is not None else None
            outage = self.course.outage
            given_up = outage is not None and now > outage.end
            if oldest is not None and (given_up or now - oldest > self._timeout):
                silent = min(now - oldest, self._timeout)
                self._verdict = DuplexError(
                    "DEADLINE_EXCEEDED",
                    f"no answer for {silent:.3g} s; {len(self._flight)} units are unanswered",
                    broken=True,
                )
            elif oldest is None and self.ended and now - since > CLOSE_SECONDS:
                self._over = True
            else:
                continue
            self._call.cancel()

    def _taken(self, message: Any, received: float) -> UnitResponse | DuplexError:
        """A message as what the iterator gives; a DuplexError is returned if the server sent it, raised if it broke
        the contract."""
        owed, outage = self._flight.land(), self.course.outage
        resuming = owed is not None and outage is not None
        if resuming:
            self._flight.open_gate()
        if message.error_message:
            known = self.course.answered > 0 and (outage is None or not outage.anew)
            error, self._struck = from_server(message.error_message, session_open=known), owed
            if owed is not None and resuming and known:
                return self._refused(error, owed)
            return error
        response, news = self.course.answer(wire.decode(message.infer_response, self._served.shape, received), owed)
        self._starts, self._pauses = 1, (self._reconnect or Reconnect()).pauses()
        self._home_token = response.info.get("home", self._home_token)
        if news is not None and self._on_resume is not None:
            self._on_resume(news)
        return response

    # -- a lost connection -------------------------------------------------------------------------------------
    def _way_on(self, error: DuplexError) -> Literal["resume", "anew"] | None:
        """What is to be done after `error`; None: nothing. After the last unit there is nothing to go on with."""
        policy, outage = self._reconnect, self.course.outage
        if policy is None or self._leaving or self._failure is not None or self.ended:
            return None
        if self._moving:
            return "anew"
        if not self.course.answered or (outage is not None and outage.anew):  # there is no session yet
            return "anew" if startable(error) and self._starts < policy.starts else None
        if resumable(error):
            return "resume"
        return "anew" if policy.anew and gone(error) else None

    async def _come_back(self, error: DuplexError, anew: bool) -> None:
        """From a stream that broke to the next one. Raises DuplexError when it is time to give up."""
        policy, course = self._reconnect or Reconnect(), self.course
        if course.outage is None:
            began = self._flight.oldest or time.monotonic()
            course.outage = Outage(began, policy.end(began, self._served.grace), error.message)
        self._flight.close_gate()
        self._reading_since = self._verdict = None
        self._call.cancel()
        await self._flight.settle()
        struck, self._struck = self._struck, None
        for owed in (*filter(None, (struck,)), *self._flight.crash()):
            await self._inbox.put(course.lose(owed))
        if anew:
            await self._begin_anew(error)
        if error.broken and not self._moving:
            if self._line is not self._home:
                await self._line.close()
            self._line = await policy.until_back(lambda limit: dial(self._served, limit), course.outage)
        self._moving = False
        self._call = self._line.stream("" if anew else self._home_token)
        self._flight.open_gate()

    async def _begin_anew(self, error: DuplexError) -> None:
        if not self._moving:
            self._starts += 1
            hint = (error.retry_after or 0.0) * (1 + random.random() / 2)  # not all at once
            await asyncio.sleep(max(hint, next(self._pauses)))
        if self.course.answered or error.broken:  # a server may know the old one
            self.session_id = secrets.randbits(62) + 1
        self._home_token = ""
        self.course.begin_anew()

    def _refused(self, error: DuplexError, owed: Owed) -> UnitResponse | DuplexError:
        """The server did not resume the session with this unit."""
        outage = self.course.outage
        if outage is not None and error.code == "RESOURCE_EXHAUSTED" and time.monotonic() < outage.end:
            self._struck = None
            return self.course.postpone(owed)
        if not error.fatal:
            return error
        said = f"the connection was lost, and the session cannot be resumed: {error.message}; start a new one"
        return DuplexError(error.code, said)


def _cancelled() -> bool:
    """Whether this task was asked to end: gRPC raises CancelledError also when a call was cancelled under it."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
