"""One conversation in Realtime events: what the model does becomes events here (client events: see `commands`)."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

from client.stream.errors import DuplexError
from client.stream.units import UnitResponse
from client.web import media as picture
from client.web import sound
from client.web.call.call import Call, SentUnit
from client.web.call.outbox import Kind
from client.web.realtime.config import SessionConfig
from client.web.realtime.floor import Floor
from client.web.realtime.items import Item, Items, new_id
from client.web.realtime.speech import Speech
from client.web.realtime.wording import EventError, Wording
from client.web.sound import Resampler

SILENT_UNITS = 50  # a response that was asked for is given up when the model has not spoken for 8 s


class RealtimeSession:
    """Dialect of `/v1/realtime`. Its events are numbered; a client that resumes names the last one it has seen."""

    def __init__(self, call: Call, wording: Wording, model: str, grace: float) -> None:
        self.call = call
        self.wording = wording
        self.model = model
        self.grace = grace
        self.config = SessionConfig()
        self.items = Items()
        self.floor = Floor(self.emit, wording, self.items)
        self.speech: Speech | None = None  # in progress or asked for
        self._cancelled: Speech | None = None  # what the model is still saying though nobody will hear it
        self._down = Resampler(call.shape.sample_rate, self.config.output_rate)
        self._videos = 0
        self.emit("session.created", session=self.show())

    def show(self) -> dict[str, Any]:
        return self.config.show(self.call.key, self.model, self.call.shape, self.wording, self.grace)

    def configure(self, config: SessionConfig) -> None:
        """Takes over a checked configuration."""
        if config.output_rate != self._down.target:
            self._down = Resampler(self.call.shape.sample_rate, config.output_rate)
        self.config = config
        self.floor.enabled = config.turn_detection is not None

    # -- events out --------------------------------------------------------------------------------------------
    def emit(self, kind: str, *, epoch: int | None = None, **fields: Any) -> None:
        """Sends one event of type `kind`."""
        audio = (f"response.{self.wording.audio}.delta",)
        lane: Kind = "video" if kind == "wan.video.delta" else "audio" if kind in audio else "control"
        number = self.call.journal.last + 1
        if lane == "video":
            self._videos += 1
        event_id = f"event_{number}" if lane != "video" else f"video_{self._videos}"
        event = {"type": kind, "event_id": event_id, **fields}
        self.call.emit(lane, json.dumps(event, ensure_ascii=False), epoch)

    def emit_error(self, error: EventError, event_id: str | None, kind: str = "invalid_request_error") -> None:
        """Answers a client event that could not be obeyed."""
        body = {"type": kind, "code": error.code, "message": error.message, "param": error.param, "event_id": event_id}
        self.emit("error", error=body)

    # -- responses ---------------------------------------------------------------------------------------------
    def ask(self, metadata: Any) -> None:
        """response.create: announced at once, begun when the model speaks. Raises EventError while one goes on."""
        if self.speech is not None:
            raise EventError(
                "conversation_already_has_active_response",
                f"response: {self.speech.id} is in progress; cancel it or wait for response.done",
            )
        self.speech = Speech(self.emit, self.wording, self.config.modality, metadata)

    def cancel(self, response_id: Any) -> None:
        """response.cancel: nothing of it will be sent any more. Raises EventError when there is nothing to cancel."""
        speech = self.speech
        if speech is None or response_id not in (None, speech.id):
            raise EventError("response_cancel_not_active", "response.cancel: no such response is in progress")
        self.call.interrupt()
        speech.done("cancelled", reason="client_cancelled")
        self.speech, self._cancelled = None, speech if speech.item is not None else self._cancelled

    async def on_unit(self, response: UnitResponse, sent: SentUnit, epoch: int) -> None:
        unit = response.unit_index
        began, stopped, interrupted = self.floor.hear(unit, sent.pcm, response.state)
        if began and not self.call.fence.muted:
            self._begin()
        pcm16 = sound.to_pcm16(self._down.feed(response.pcm))
        if self._cancelled is not None:
            if stopped:
                self._cancelled = None
            else:
                self._cancelled.say(response.text, pcm16, self._down.target, epoch)  # the fence drops it
        elif self.speech is not None and self.speech.item is not None:
            self._go_on(self.speech, response, pcm16, epoch, stopped=stopped, interrupted=interrupted)
        if self.speech is not None and self.speech.item is None:
            self._wait_on(self.speech)
        if self.config.video and self.call.wants_video():
            strip = await asyncio.to_thread(picture.encode_strip, response.frames)
            delta = base64.b64encode(strip).decode()
            self.emit("wan.video.delta", unit=unit, format="jpeg", frames=len(response.frames), delta=delta)

    def _go_on(
        self, speech: Speech, response: UnitResponse, pcm16: bytes, epoch: int, *, stopped: bool, interrupted: bool
    ) -> None:
        if interrupted:
            self.call.fence.cut(response.unit_index)  # what still waits to be sent would be spoken over the user
            speech.done("cancelled", reason="turn_detected")
        else:
            speech.say(response.text, pcm16, self._down.target, epoch)  # the first quiet unit holds the last echo
        if stopped:
            speech.done("completed")
            self.speech = None

    def _wait_on(self, speech: Speech) -> None:
        speech.waited_units += 1
        if speech.waited_units > SILENT_UNITS:
            speech.done("failed", error={"type": "server_error", "code": "model_silent"})
            self.speech = None

    def on_end(self, error: DuplexError | None) -> None:
        if self.speech is not None:
            code = "session_ended" if error is None else error.code.lower()
            self.speech.done("failed", error={"type": "server_error", "code": code})
        if error is not None:
            self.emit_error(EventError(error.code.lower(), error.message), None, "server_error")

    def _begin(self) -> None:
        """The model takes the floor, asked or not."""
        self._cancelled = None
        if self.speech is None:
            self.speech = Speech(self.emit, self.wording, self.config.modality)
        previous = self.items.last
        self.speech.begin(self.items.add(Item(new_id("item"), "assistant", self.config.modality)), previous)
