"""One WebRTC client: what `Connection` is for a WebSocket. Sound and pictures are tracks, events a data channel."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Protocol
from urllib.parse import parse_qsl

import numpy as np
from aiortc import RTCConfiguration, RTCDataChannel, RTCIceServer, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from aiortc.rtcrtpparameters import RTCRtpCodecCapability
from PIL import Image

from client.stream.units import FPS, Float32, UInt8

from .. import media
from ..call.call import Call
from ..call.call_book import CallBook
from ..call.outbox import Closing, Outbox
from ..door.connection import Reader
from ..media import Format, Resampler
from .ear import hand_on_at_once
from .playout import RATE, Playout
from .tracks import Face, Voice

log = logging.getLogger(__name__)

JOIN_SECONDS = 20.0  # until the data channel is open
OPUS = RTCRtpCodecCapability(mimeType="audio/opus", clockRate=RATE, channels=2)
MAX_BUFFERED = 1 << 20  # bytes of events that wait for a client that does not read


class RtcReader(Reader, Protocol):
    """A reader of events that hears a media track as well."""

    @property
    def rate(self) -> int: ...  # of what it hears

    @property
    def form(self) -> Format: ...  # of the sound in its messages

    def hear(self, sound: Float32) -> None: ...

    def voice(self, message: str | bytes) -> Float32: ...  # that a message of the agent's sound holds

    def goodbye(self, why: Closing) -> str | None: ...  # the last event


class Peer:
    """Owns a peer connection until it or its call ends."""

    def __init__(self, book: CallBook, ice_servers: tuple[str, ...]) -> None:
        servers = [_server(given) for given in ice_servers]
        self._pc = RTCPeerConnection(RTCConfiguration(iceServers=servers))
        self._book = book
        self._channel: asyncio.Future[RTCDataChannel] = asyncio.get_running_loop().create_future()
        self._lost = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pc.on("datachannel", self._opened)
        self._pc.on("track", self._track)
        self._pc.on("connectionstatechange", self._changed)

    def adopt(self, call: Call, reader: RtcReader, outbox: Outbox, greeting: str | None = None) -> None:
        """Before `answer`: whose client this is. greeting: goes out before anything else."""
        self._call, self._reader, self._outbox, self._greeting = call, reader, outbox, greeting
        self._playout = Playout(call.fence)
        self._up, self._down = Resampler(RATE, reader.rate), Resampler(reader.form.rate, RATE)
        call.on_frames = self._playout.show

    async def answer(self, offer: str) -> str:
        """The SDP answer. Raises ValueError for an offer that is none, or has no Opus or no data channel."""
        voice = self._pc.addTransceiver(Voice(self._playout, pauses="usedtx=1" in offer))
        voice.setCodecPreferences([OPUS])
        hand_on_at_once(voice.receiver, self._hear)
        try:
            await self._pc.setRemoteDescription(RTCSessionDescription(offer, "offer"))
        except Exception as error:  # whatever aiortc trips over in a stranger's SDP
            raise ValueError(f"sdp: expected an offer ({type(error).__name__}: {error})") from None
        if voice.mid is None or self._pc.sctp is None:
            raise ValueError("sdp: expected an offer with audio and a data channel")
        if any(transceiver.kind == "video" for transceiver in self._pc.getTransceivers()):
            self._pc.addTrack(Face(self._playout, self._call.shape))
        await self._pc.setLocalDescription(await self._pc.createAnswer())
        return self._pc.localDescription.sdp

    async def run(self) -> None:
        """Serves the client until it leaves or its conversation is over."""
        pump = self._start(self._send())
        lost = self._start(self._lost.wait())
        try:
            await asyncio.wait({pump, lost}, return_when="FIRST_COMPLETED")
        finally:
            if self._call.on_frames == self._playout.show:  # and not of a client that came after this one
                self._call.on_frames = None
            self._book.leave(self._call, self._outbox)
            await self.close()

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await self._pc.close()

    def _start(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- from aiortc -------------------------------------------------------------------------------------------
    def _changed(self) -> None:
        if self._pc.connectionState in ("failed", "closed"):
            self._lost.set()

    def _opened(self, channel: RTCDataChannel) -> None:
        if self._channel.done():
            return
        self._channel.set_result(channel)
        channel.on("close", self._lost.set)
        inbox: asyncio.Queue[str | bytes] = asyncio.Queue(512)

        def take(data: str | bytes) -> None:
            if inbox.full():
                self._lost.set()  # a flood: media does not come this way
            else:
                inbox.put_nowait(data)

        channel.on("message", take)
        self._start(self._read(inbox))

    def _track(self, track: MediaStreamTrack) -> None:
        if track.kind == "video":
            self._start(self._see(track))

    # -- up ----------------------------------------------------------------------------------------------------
    async def _read(self, inbox: asyncio.Queue[str | bytes]) -> None:
        while True:
            data = await inbox.get()
            self._call.heard_at = time.monotonic()
            await (self._reader.on_text(data) if isinstance(data, str) else self._reader.on_binary(data))

    def _hear(self, sound: Float32) -> None:
        self._reader.hear(self._up.feed(sound))

    async def _see(self, track: MediaStreamTrack) -> None:
        loop, next_at = asyncio.get_running_loop(), 0.0
        try:
            while True:
                frame: Any = await track.recv()
                if loop.time() < next_at:  # a camera may be faster than the model
                    continue
                next_at = loop.time() + 0.8 / FPS
                image = Image.fromarray(np.asarray(await loop.run_in_executor(None, _rgb, frame)))
                self._call.intake.add_frames(await media.decode_in_turn(image, self._call.shape))
        except MediaStreamError:
            self._call.intake.clear_frames()

    # -- down --------------------------------------------------------------------------------------------------
    async def _send(self) -> None:
        """Events to the channel; sound, which dialects send as events too, to the track."""
        try:
            async with asyncio.timeout(JOIN_SECONDS):
                channel = await self._channel
        except TimeoutError:
            return
        if self._greeting is not None:
            channel.send(self._greeting)
        while (message := await self._outbox.get()) is not None:
            if message.kind == "audio":
                if self._reader.form.rate != self._down.source:
                    self._down = Resampler(self._reader.form.rate, RATE)
                self._playout.say(self._down.feed(self._reader.voice(message.data)), message.epoch)
            elif message.kind == "control":
                if self._lost.is_set() or channel.bufferedAmount > MAX_BUFFERED:
                    return
                channel.send(message.data)  # pyright: ignore[reportArgumentType]
        if (last := self._reader.goodbye(self._outbox.closed or "ended")) is not None:
            channel.send(last)
        while channel.bufferedAmount and channel.readyState == "open":
            await asyncio.sleep(0.05)


def _rgb(frame: Any) -> UInt8:
    return frame.to_ndarray(format="rgb24")


def _server(given: str) -> RTCIceServer:
    """`stun:host`, or `turn:host` with `?user=...&secret=...`, as the command line has it."""
    url, _, rest = given.partition("?")
    more = dict(parse_qsl(rest))
    return RTCIceServer(url, username=more.get("user"), credential=more.get("secret"))
