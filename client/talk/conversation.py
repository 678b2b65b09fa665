"""One whole conversation in real time: a user from files on one side, a served model on the other.

What the agent says and shows goes to a scratch file as it arrives and is read from there unit by unit, so that an hour
of it needs no more memory than a minute; the records (a few hundred bytes a unit) stay in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..media.loudness import Decibel, unit_levels
from ..media.source import UserSource
from ..stream import DuplexClient, DuplexError, DuplexSession, MediaError, Pacer, Reconnect, Resumed
from ..stream.units import FRAMES_PER_UNIT, UNIT_MS, Float32, UInt8, UnitResponse, UnitShape, UserUnit

HANG_UP_SECONDS = 0.1  # how often it is looked, after `stop`, whether the connection is lost


@dataclass
class UnitRecord:
    """One unit of a conversation. Times are milliseconds since the first unit began to be spoken."""

    index: int
    due_ms: float  # when the user unit was complete
    sent_ms: float
    user_text: str = ""
    received_ms: float | None = None
    state: str = ""
    text: str = ""
    heard: str = ""  # of the user, by the agent
    info: dict[str, Any] = field(default_factory=dict)
    skipped: bool = False  # never sent: it fell into an outage of the connection

    @property
    def response_ms(self) -> float | None:
        """From the moment the user unit was complete until the response was here."""
        return None if self.received_ms is None else self.received_ms - self.due_ms

    @property
    def on_time(self) -> bool:
        """The response was here before the next unit was complete."""
        return self.response_ms is not None and self.response_ms <= UNIT_MS

    @property
    def late_send_ms(self) -> float:
        return self.sent_ms - self.due_ms

    @property
    def stages(self) -> dict[str, float]:
        """Milliseconds that the server says it spent, by stage."""
        given = self.info.get("ms")
        return {str(k): float(v) for k, v in given.items()} if isinstance(given, dict) else {}

    @property
    def degradation(self) -> list[str]:
        """What the server left out to be in time."""
        return [str(item) for item in self.info.get("degradation") or []]


class Recording:
    """The agent's voice and pictures, in the order of arrival, in a scratch file that vanishes with this object."""

    def __init__(self, shape: UnitShape, folder: Path) -> None:
        self.shape = shape
        self._pcm_bytes = shape.samples * 4
        self._unit_bytes = self._pcm_bytes + int(np.prod(shape.frames))
        self._file = tempfile.TemporaryFile(dir=folder, prefix="agent-")  # noqa: SIM115 - closed by close()
        self._slots: dict[int, int] = {}  # unit -> place in the file

    def add(self, response: UnitResponse) -> None:
        self._file.seek(len(self._slots) * self._unit_bytes)
        self._file.write(response.pcm.astype("<f4").tobytes())
        self._file.write(response.frames.tobytes())
        self._slots[response.unit_index] = len(self._slots)

    def get(self, unit: int) -> tuple[Float32, UInt8] | None:
        """pcm float32 [samples] and frames uint8 [4, H, W, 3] of a unit; None when there was no response."""
        slot = self._slots.get(unit)
        if slot is None:
            return None
        self._file.seek(slot * self._unit_bytes)
        data = self._file.read(self._unit_bytes)
        pcm = np.frombuffer(data[: self._pcm_bytes], dtype="<f4").astype(np.float32)
        return pcm, np.frombuffer(data[self._pcm_bytes :], dtype=np.uint8).reshape(self.shape.frames)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(eq=False)
class Conversation:
    """What happened: one record per unit, without gaps, the errors, and who talked with whom."""

    source: UserSource
    recording: Recording
    url: str
    model: str
    session_id: int | str
    options: dict[str, Any]
    server: dict[str, Any]
    parameters: dict[str, str]
    started: str  # ISO time
    units: list[UnitRecord] = field(default_factory=list)
    errors: list[DuplexError] = field(default_factory=list)
    outages: list[Resumed] = field(default_factory=list)  # of the connection, after which it went on
    stopped: bool = False  # by the user, before the end

    @property
    def shape(self) -> UnitShape:
        return self.source.shape

    def answered(self) -> list[UnitRecord]:
        return [unit for unit in self.units if unit.received_ms is not None]

    def voices(self) -> Iterator[tuple[Float32, Float32]]:
        """User and agent in each unit, float32 [samples] each; silence where there was no answer."""
        samples = self.shape.samples
        silence = np.zeros(samples, np.float32)
        for unit in self.units:
            found = self.recording.get(unit.index)
            user = self.source.pcm[unit.index * samples : (unit.index + 1) * samples]
            yield user, silence if found is None else found[0]

    def levels(self) -> tuple[Decibel, Decibel]:
        """How loud user and agent were, dB [units, 4]."""
        samples = self.shape.samples
        pairs = [unit_levels(pair, samples) for pair in self.voices()]
        both = np.stack(pairs) if pairs else np.zeros((0, 2, FRAMES_PER_UNIT))
        return both[:, 0], both[:, 1]


async def converse(
    client: DuplexClient,
    source: UserSource,
    folder: Path,
    *,
    options: Mapping[str, Any] | None = None,
    session_id: int | str | None = None,
    stop: asyncio.Event | None = None,
    timeout: float = 10.0,
    reconnect: bool | Reconnect = False,
    on_unit: Callable[[UnitRecord], None] | None = None,
    on_resume: Callable[[Resumed], None] | None = None,
) -> Conversation:
    """Holds the conversation and returns what happened, also when the server fails in the middle (see `errors`).

    folder: for the scratch file; must exist.  stop: set it to end early; the unit after that is the last one.
    reconnect: see `DuplexClient.session`.  on_unit: called for each response.  on_resume: after each outage.
    """

    def resumed(news: Resumed) -> None:
        talk.outages.append(news)
        if on_resume is not None:
            on_resume(news)

    session = client.session(session_id, options, timeout=timeout, reconnect=reconnect, on_resume=resumed)
    talk = Conversation(
        source=source,
        recording=Recording(client.shape, folder),
        url=client.url,
        model=client.model,
        session_id=session.session_id,
        options=session.options,
        server=client.server,
        parameters=client.parameters,
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    pacer = Pacer(time.monotonic)
    records: dict[int, UnitRecord] = {}

    def sent(unit: UserUnit, at: float) -> None:
        origin = pacer.due(-1)
        for index in range(len(talk.units), unit.index):
            due = (pacer.due(index) - origin) * 1e3
            talk.units.append(UnitRecord(index, due, due, source.typed.get(index, ""), skipped=True))
        record = UnitRecord(unit.index, (pacer.due(unit.index) - origin) * 1e3, (at - origin) * 1e3, unit.text)
        records[unit.index] = record
        talk.units.append(record)

    def received(response: UnitResponse) -> None:
        record = records.get(response.unit_index)
        if record is None:
            raise DuplexError("INTERNAL", f"unit_index: the server answered unit {response.unit_index}, never sent")
        if response.lost:
            return
        record.received_ms = (response.received - pacer.due(-1)) * 1e3
        record.state, record.text, record.heard, record.info = (
            response.state,
            response.text,
            response.heard,
            response.info,
        )
        talk.recording.add(response)
        if on_unit is not None:
            on_unit(record)

    broken: list[DuplexError] = []  # by the user's files

    async def play() -> None:
        try:
            await session.play(_until(source.units(), stop), pacer, sent)
        except MediaError as error:
            broken.append(DuplexError("ABORTED", str(error)))
            await session.close()
        except Exception as error:
            if not isinstance(error, DuplexError):  # that the reader tells, after what came before it
                await session.close()
            raise

    async with session:
        others = asyncio.create_task(play()), asyncio.create_task(_hang_up(session, stop))
        try:
            async for response in session:
                received(response)
        except DuplexError as error:
            talk.errors.append(broken[0] if broken else error)  # a refused unit too: those after it would be refused
        finally:
            for task in others:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, DuplexError):
                    await task
    talk.stopped = stop is not None and stop.is_set()
    return talk


async def _hang_up(session: DuplexSession, stop: asyncio.Event | None) -> None:
    """After `stop`: no last unit can be sent while the connection is lost, and nobody waits for that."""
    if stop is None:
        return
    await stop.wait()
    while not session.reconnecting:
        await asyncio.sleep(HANG_UP_SECONDS)
    await session.close()


def _until(units: Iterator[UserUnit], stop: asyncio.Event | None) -> Iterator[UserUnit]:
    """The units up to the first one after `stop`, which then is the end of the session."""
    for unit in units:
        if stop is not None and stop.is_set():
            yield UserUnit(unit.index, unit.pcm, unit.frames, unit.text, end=True)
            return
        yield unit
