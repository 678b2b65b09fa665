"""One conversation as the page sees it: JSON for control, `frames` for sound and pictures.

Over WebRTC sound and pictures are tracks, and a `bye` says why no more will come.

Up:    text, interrupt, camera (off), ping, end; PCM16 and strips of four frames. The first sound or text begins it.
Down:  welcome, unit (state, timings), heard, caption, notice, error, ended; PCM16 and strips of four frames.
Of each unit come `unit`, `heard` and `caption` if there are words of the user or the agent, the voice and then the
pictures, all with the unit's index.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from typing import Any

from client.stream import DuplexError, Resumed, UnitResponse
from client.stream.units import Float32

from .. import media
from ..call.call import Call, SentUnit
from ..call.fence import SPEAK
from ..call.hearing import BARGE_IN_UNITS, Hearing
from ..call.intake import Stamp
from ..call.outbox import CLOSE_CODES, Closing
from ..events import to_text
from ..media import Format
from . import frames as page_frames

MAX_BAD_MESSAGES = 20
HISTORY_TURNS = 64
TURN_GAP = 3  # units without text end a turn


class PageSession:
    """Dialect (down) and reader (up) of the page's socket. raw_video: strips as RGB instead of JPEG."""

    def __init__(self, call: Call, options: dict[str, Any], *, raw_video: bool) -> None:
        self.options = options  # of the model
        self.state = "listen"
        self.history: deque[dict[str, str]] = deque(maxlen=HISTORY_TURNS)
        self._call = call
        self._raw = raw_video
        self.form = Format("pcm", call.shape.sample_rate)  # of the sound that goes down
        self._hearing = Hearing()
        self._bad = 0
        self._newest: tuple[str, int] | None = None  # who said the newest turn, and its last unit

    # -- down --------------------------------------------------------------------------------------------------
    async def on_unit(self, response: UnitResponse, sent: SentUnit, epoch: int) -> None:
        call, unit = self._call, response.unit_index
        self._hearing.feed(sent.pcm)
        stopped = self.state == SPEAK and response.state != SPEAK
        self.state = response.state
        barge_in = stopped and self._hearing.quiet_units < BARGE_IN_UNITS
        if barge_in:
            epoch = call.fence.cut(unit)
        stamp = sent.stamp
        self._control(
            "unit",
            seq=call.journal.last + 1,
            unit=unit,
            state=response.state,
            barge_in=barge_in,
            muted=call.fence.muted,
            ms=response.info.get("ms", {}),
            captured=stamp.captured if stamp else None,
            held=round((sent.at - (stamp.arrived if stamp else sent.due)) * 1e3, 2),
            gateway=round((response.received - sent.at) * 1e3, 2),
            steps=response.info.get("steps"),
            degradation=response.info.get("degradation") or [],
            shed=call.shed(),
        )
        if response.heard:
            self._control("heard", unit=unit, text=response.heard)
            self._remember("you", response.heard, unit)
        if response.text:
            self._control("caption", epoch=epoch, unit=unit, text=response.text)
            if not call.fence.muted:
                self._remember("agent", response.text, unit)
        call.emit("audio", page_frames.pack(page_frames.PCM16, unit, media.to_pcm16(response.pcm)), epoch)
        if call.on_frames is None and call.wants_video():
            if self._raw:
                call.emit("video", page_frames.pack(page_frames.RGB, unit, response.frames.tobytes()))
            else:
                strip = await asyncio.to_thread(media.encode_strip, response.frames)
                call.emit("video", page_frames.pack(page_frames.JPEG, unit, strip))

    def on_refused(self, error: DuplexError) -> None:
        self._control("error", code=error.code, message=error.message)

    def on_mended(self, resumed: Resumed) -> None:
        self._control("notice", text=f"server: {resumed}")

    def on_leaving(self, seconds: float) -> None:
        self._control("notice", text=f"This server is going away: {seconds:.0f} s are left. Then connect again.")

    def on_end(self, error: DuplexError | None) -> None:
        if error is not None:
            self._control("error", code=error.code, message=error.message)
        self._control("ended")

    def _control(self, kind: str, *, epoch: int | None = None, **fields: Any) -> None:
        self._call.emit("control", to_text({"type": kind, **fields}), epoch)

    # -- up ----------------------------------------------------------------------------------------------------
    async def on_text(self, data: str) -> None:
        try:
            message = json.loads(data)
            kind = message["type"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ValueError("expected a JSON object with a type") from None
        if kind == "text":
            text = message.get("text")
            if not isinstance(text, str) or not text.strip():
                self._refuse(f"text: expected some text, got {text!r:.80}")
                return
            try:
                self._call.intake.add_text(text.strip())
            except ValueError as error:
                self._refuse(str(error))
                return
            self._remember("you", text.strip(), None)
            self._call.start(self.options)
        elif kind == "interrupt":
            self._control("interrupted", after=self._call.last_sent)
            self._call.interrupt()
        elif kind == "camera":
            self._call.intake.clear_frames()
        elif kind == "ping":
            self._control("pong", t=message.get("t"))
        elif kind == "end":
            self._call.end()
        else:
            self._refuse(f"type: expected text, interrupt, camera, ping or end, got {kind!r:.80}")

    async def on_binary(self, data: bytes) -> None:
        try:
            frame = page_frames.unpack(data)
            if frame.kind == page_frames.PCM16:
                self._call.intake.add_pcm(media.from_pcm16(frame.body), Stamp(frame.time, time.monotonic()))
                self._call.start(self.options)
            elif frame.kind == page_frames.RGB:
                self._call.intake.add_frames(media.raw_strip(frame.body, self._call.shape))
            else:
                strip = await asyncio.to_thread(media.decode_strip, frame.body, self._call.shape)
                self._call.intake.add_frames(strip)
        except ValueError as error:
            self._refuse(str(error))

    # -- over media tracks -------------------------------------------------------------------------------------
    @property
    def rate(self) -> int:
        return self.form.rate

    def hear(self, sound: Float32) -> None:
        self._call.intake.add_pcm(sound)
        self._call.start(self.options)

    def voice(self, message: str | bytes) -> Float32:
        assert isinstance(message, bytes)
        return media.from_pcm16(page_frames.unpack(message).body)

    def goodbye(self, why: Closing) -> str | None:
        return json.dumps({"type": "bye", "code": CLOSE_CODES[why]})

    def _refuse(self, reason: str) -> None:
        self._bad += 1
        if self._bad > MAX_BAD_MESSAGES:
            raise ValueError(f"too many bad messages; the last one: {reason}")
        self._control("error", code="INVALID_ARGUMENT", message=reason)

    def _remember(self, who: str, text: str, unit: int | None) -> None:
        """unit: None for what was typed, which is a turn by itself."""
        newest, self._newest = self._newest, None if unit is None else (who, unit)
        if unit is not None and newest is not None and newest[0] == who and unit - newest[1] <= TURN_GAP:
            self.history[-1]["text"] = (self.history[-1]["text"] + text)[-2000:]
        else:
            self.history.append({"who": who, "text": text.lstrip()[:2000]})
