"""One conversation in Live events: no turns, every unit as it comes (client events: see `commands`)."""

from __future__ import annotations

import base64
import json
import secrets
import time
from dataclasses import dataclass
from typing import Any

from client.stream import DuplexError, Resumed, UnitResponse
from client.stream.units import UNIT_MS, UNIT_SECONDS, Float32

from .. import media
from ..call.call import Call, SentUnit
from ..call.outbox import Kind, Message, Outbox, OutboxFull
from ..events import EventError, to_text, wrong
from ..media import Format, Resampler
from .config import LiveConfig

LONGEST_SECONDS = 24 * 3600.0  # of a session
USAGE_UNITS = 62  # between two session.usage.updated, about 10 s
MAX_WATCHERS = 4  # sidebands of one session
REFLECTED = Format("pcm", 24_000)  # what sidebands hear, whatever the session's own format


@dataclass(frozen=True)
class Append:
    """Text on its way to the model. kind: instructions, thinking or commentary."""

    kind: str
    text: str
    event_id: str | None


class LiveSession:
    """Dialect of `/v1/live/sessions`. It is `session.started` when the model has answered its first unit."""

    def __init__(self, call: Call, model: str) -> None:
        self.call = call
        self.config: LiveConfig | None = None  # from session.start on
        self.started = False
        self.muted = False
        self.delegations: set[str] = set()  # that the application may answer
        self.appends: list[Append] = []  # that wait for their unit
        self._model = model
        self._watchers: list[Outbox] = []
        self._start_id: str | None = None
        self._close_id: str | None = None
        self._reason = "connection_lost"
        self._units = 0
        self._begun = time.time()
        self._events = 0
        self._dropped = 0
        self._up = Resampler(REFLECTED.rate, call.shape.sample_rate)
        self._down = Resampler(call.shape.sample_rate, REFLECTED.rate)
        self._mirror = self._down  # to the sidebands' rate
        self._ear = Resampler(REFLECTED.rate, REFLECTED.rate)  # from the client's rate to the sidebands'
        call.on_delegated = self._delegate

    def show(self) -> dict[str, Any]:
        """The session resource."""
        config = self.config or LiveConfig()
        return config.show(self.call, self._model, round(self._begun + LONGEST_SECONDS))

    # -- the client --------------------------------------------------------------------------------------------
    def start(self, config: LiveConfig, event_id: str | None) -> None:
        self.config, self._start_id = config, event_id
        rate, model_rate = config.form.rate, self.call.shape.sample_rate
        self._up, self._down = Resampler(rate, model_rate), Resampler(model_rate, rate)
        self._mirror = Resampler(model_rate, REFLECTED.rate)
        self._ear = Resampler(rate, REFLECTED.rate)
        self.call.start(config.model_options())

    def hear(self, sound: Float32) -> None:
        """float32 [n] at the client's rate; a muted client is heard by the sidebands only."""
        if self._watchers:
            audio = _pack(REFLECTED.encode(self._ear.feed(sound)))
            self._reflect(json.dumps({"type": "session.input_audio.append", "audio": audio}))
        if not self.muted:
            self.call.intake.add_pcm(self._up.feed(sound))

    def close(self, event_id: str | None, reason: str = "close_requested") -> None:
        self._close_id, self._reason = event_id, reason
        self.call.end()

    # -- sidebands ---------------------------------------------------------------------------------------------
    def watch(self) -> Outbox:
        """Another listener, which gets every event and the sound of both sides. Raises EventError for one too many."""
        if len(self._watchers) >= MAX_WATCHERS:
            raise wrong("session_id", f"at most {MAX_WATCHERS} sidebands", code="rate_limit_exceeded")
        outbox = Outbox(self.call.fence)
        self._watchers.append(outbox)
        if self.started:
            outbox.put(Message("control", self._event("session.started", session=self.show())))
        return outbox

    def unwatch(self, outbox: Outbox) -> None:
        if outbox in self._watchers:
            self._watchers.remove(outbox)

    def _reflect(self, data: str) -> None:
        for outbox in list(self._watchers):
            try:
                outbox.put(Message("control", data))
            except OutboxFull:
                outbox.close("too slow")
                self.unwatch(outbox)

    # -- events out --------------------------------------------------------------------------------------------
    def _event(self, kind: str, **fields: Any) -> str:
        self._events += 1
        given = {name: value for name, value in fields.items() if value is not None}
        return to_text({"type": kind, "event_id": f"event_{self._events}", **given})

    def emit(self, kind: str, **fields: Any) -> None:
        """One event to the client and its sidebands."""
        data = self._event(kind, **fields)
        self.call.emit("control", data)
        self._reflect(data)

    def emit_error(self, error: EventError, event_id: str | None, kind: str = "invalid_request_error") -> None:
        body = {"type": kind, "code": error.code, "message": error.message}
        body |= {"param": error.param} if error.param else {}
        body |= {"client_event_id": event_id} if event_id else {}
        self.emit("error", error=body, client_event_id=event_id)

    def _send_media(self, lane: Kind, kind: str, **fields: Any) -> None:
        self.call.emit(lane, json.dumps({"type": kind, **fields}))

    # -- the model ---------------------------------------------------------------------------------------------
    async def on_unit(self, response: UnitResponse, sent: SentUnit, epoch: int) -> None:
        unit, config = response.unit_index, self.config or LiveConfig()
        when = {"start_ms": unit * UNIT_MS, "end_ms": (unit + 1) * UNIT_MS}
        self._units = unit + 1
        if not self.started:
            if response.lost:  # no server has taken the session yet
                return
            self._announce(config)
        self._acknowledge(sent.unit.text, unit)
        if response.heard:
            self.emit("session.input_transcript.delta", delta=response.heard, **when)
        if response.text:
            self.emit("session.output_transcript.delta", delta=response.text, **when)
        if sound := config.form.encode(self._down.feed(response.pcm)):
            self._send_media("audio", "session.output_audio.delta", delta=_pack(sound), **when)
        if self._watchers:
            delta = _pack(REFLECTED.encode(self._mirror.feed(response.pcm)))
            self._reflect(json.dumps({"type": "session.output_audio.delta", "delta": delta, **when}))
        if config.video and self.call.wants_video():
            self._send_media("video", "wan.video.delta", unit=unit, **when, **await media.show_strip(response.frames))
        self._tell_dropped()
        if self._units % USAGE_UNITS == 0:
            self.emit("session.usage.updated", usage=self._usage())
        if self._units * UNIT_SECONDS > LONGEST_SECONDS:
            self.close(None, "expired")

    def _announce(self, config: LiveConfig) -> None:
        self.started, self._begun = True, time.time()
        self.emit("session.started", session=self.show(), client_event_id=self._start_id)
        for message in config.no_effect:
            self.emit("info", code="no_effect", message=message)

    def _acknowledge(self, text: str, unit: int) -> None:
        """Appended text goes along with a unit, and its place in time is where that begins."""
        for each in [each for each in self.appends if text and each.text in text]:
            self.appends.remove(each)
            at = unit * UNIT_MS
            self.emit(f"session.{each.kind}.appended", start_ms=at, end_ms=at, client_event_id=each.event_id)

    def _delegate(self, unit: int) -> None:
        delegation = {"id": f"dlg_{secrets.token_hex(10)}", "type": "delegation", "target": "client"}
        self.delegations.add(delegation["id"])
        self.emit("session.delegation.created", delegation=delegation, offset_ms=unit * UNIT_MS)

    def _tell_dropped(self) -> None:
        """Sound that came much faster than real time is not heard: the model lives in the present."""
        dropped, self._dropped = self.call.intake.dropped - self._dropped, self.call.intake.dropped
        if dropped:
            ms = round(dropped * 1000 / self.call.shape.sample_rate)
            self.emit("info", code="input_audio_dropped", message=f"audio: {ms} ms came too far ahead of real time")

    def _usage(self) -> dict[str, int]:
        return {"seconds": round(self._units * UNIT_SECONDS)}

    # -- the server --------------------------------------------------------------------------------------------
    def on_refused(self, error: DuplexError) -> None:
        refused, self.appends = self.appends, []
        for each in refused:
            self.emit_error(EventError("text_too_long", error.message, "content"), each.event_id)

    def on_mended(self, resumed: Resumed) -> None:
        lost = f"the server was away for {resumed.seconds:.1f} s; {resumed.lost} units are lost"
        self.emit("info", code="server_resumed", message=lost)

    def on_leaving(self, seconds: float) -> None:
        self.emit("info", code="server_leaving", message=f"the server is going away: {seconds:.0f} s are left")

    def on_end(self, error: DuplexError | None) -> None:
        if error is not None and error.code != "CANCELLED":
            self.emit_error(EventError(error.code.lower(), error.message), self._start_id, "server_error")
        if self.started:
            session, usage = self.show(), self._usage()
            reason = self._reason if error is None else "connection_lost"
            self.emit("session.closed", reason=reason, session=session, usage=usage, client_event_id=self._close_id)
        for outbox in self._watchers:
            outbox.close("ended")


def _pack(sound: bytes) -> str:
    return base64.b64encode(sound).decode()
