"""One conversation in Realtime events: what the model does becomes events here (client events: see `commands`)."""

from __future__ import annotations

from collections import deque
from typing import Any

from client.stream import DuplexError, Resumed, UnitResponse

from .. import media
from ..call.call import Call, SentUnit
from ..call.outbox import Kind
from ..events import EventError, to_text, wrong
from ..media import Resampler
from .config import SessionConfig, read_modality
from .floor import Floor
from .items import Item, Items, new_id
from .speech import Speech
from .wording import Wording

SILENT_UNITS = 19  # a response that was asked for ends empty when the model has not spoken for 3 s
HELD_UNITS = 125  # of what the model says unasked, where the client wants to ask first


class RealtimeSession:
    """Dialect of `/v1/realtime`. Its events are numbered; a client that resumes names the last one it has seen."""

    def __init__(self, call: Call, wording: Wording, model: str, grace: float) -> None:
        self.call = call
        self.wording = wording
        self.model = model
        self.grace = grace
        self.config = SessionConfig(instructions=call.prompts.choose(""))
        self.items = Items()
        self.floor = Floor(self.emit, wording, self.items)
        self.speech: Speech | None = None  # in progress or asked for
        self._cancelled: Speech | None = None  # what the model is still saying though nobody will hear it
        self._held: deque[tuple[str, bytes]] | None = None  # what it said or says unasked: text and sound of each unit
        self._holding = False  # it is still saying that
        self._down = Resampler(call.shape.sample_rate, self.config.output.rate)
        self._videos = 0
        self.emit("session.created", session=self.show())

    def show(self) -> dict[str, Any]:
        return self.config.show(self.call, self.model, self.wording, self.grace)

    def configure(self, config: SessionConfig) -> None:
        """Takes over a checked configuration."""
        if config.output.rate != self._down.target:
            self._down = Resampler(self.call.shape.sample_rate, config.output.rate)
        self.config = config
        self.floor.enabled = config.turn_detection is not None
        self.floor.transcribes = config.transcription is not None

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
        self.call.emit(lane, to_text(event), epoch)

    def emit_error(self, error: EventError, event_id: str | None, kind: str = "invalid_request_error") -> None:
        """Answers a client event that could not be obeyed."""
        body = {"type": kind, "code": error.code, "message": error.message, "param": error.param, "event_id": event_id}
        self.emit("error", error=body)

    # -- responses ---------------------------------------------------------------------------------------------
    def ask(self, given: dict[str, Any]) -> None:
        """response.create: announced at once, begun when the model speaks, or with what it has said already.

        Raises EventError while a response goes on, and for what no response here can be.
        """
        if self.speech is not None:
            raise EventError(
                "conversation_already_has_active_response",
                f"response: {self.speech.id} is in progress; cancel it or wait for response.done",
            )
        if given.get("conversation") == "none":
            raise wrong("response.conversation", "auto, for there is one conversation", "none", "unsupported_value")
        modality = self.config.modality
        for name in ("modalities", "output_modalities"):
            if given.get(name) is not None:
                modality = read_modality(f"response.{name}", given[name])
        self.speech = Speech(self.emit, self.wording, modality, given.get("metadata"))
        if self._held is None:
            return
        self._give_item(self.speech)
        for text, sound in self._held:
            self.speech.say(text, sound, self.config.output, self.call.fence.epoch)
        if not self._holding:
            self.speech.done("completed")
            self.speech = None
        self._drop_held()

    def cancel(self, response_id: Any) -> None:
        """response.cancel: nothing of it will be sent any more. Raises EventError when there is nothing to cancel."""
        speech = self.speech
        if speech is None or response_id not in (None, speech.id):
            # Clients pass over this one by its first words: their cancel and the end of the response have crossed.
            raise EventError("response_cancel_not_active", "Cancellation failed: no active response found")
        self.call.interrupt()
        speech.done("cancelled", reason="client_cancelled")
        self.speech, self._cancelled = None, speech if speech.item is not None else self._cancelled

    async def on_unit(self, response: UnitResponse, sent: SentUnit, epoch: int) -> None:
        unit, form = response.unit_index, self.config.output
        began, stopped, interrupted = self.floor.hear(unit, sent.pcm, response.state, response.heard)
        if began and not self.call.fence.muted:
            self._begin()
        sound = form.encode(self._down.feed(response.pcm))
        if self._cancelled is not None:
            if stopped:
                self._cancelled = None
            else:
                self._cancelled.say(response.text, sound, form, epoch)  # the fence drops it
        elif self._held is not None:
            self._hold(response.text, sound, stopped=stopped, interrupted=interrupted)
        elif self.speech is not None and self.speech.item is not None:
            if interrupted:
                self.call.fence.cut(unit)  # what still waits to be sent would be spoken over the user
                self.speech.done("cancelled", reason="turn_detected")
            else:
                self.speech.say(response.text, sound, form, epoch)  # the first quiet unit holds the last echo
            if stopped:
                self.speech.done("completed")
                self.speech = None
        if self.speech is not None and self.speech.item is None:
            self._wait_on(self.speech)
        if self.config.video and self.call.wants_video():
            self.emit("wan.video.delta", unit=unit, **await media.show_strip(response.frames))

    def _begin(self) -> None:
        """The model takes the floor, asked or not."""
        self._cancelled = None
        self._drop_held()
        if self.speech is None and not self.config.answers_unasked:
            self._held, self._holding = deque(maxlen=HELD_UNITS), True
            return
        if self.speech is None:
            self.speech = Speech(self.emit, self.wording, self.config.modality)
        self._give_item(self.speech)

    def _give_item(self, speech: Speech) -> None:
        previous = self.items.last
        speech.begin(self.items.add(Item(new_id("item"), "assistant", speech.modality)), previous)

    def _hold(self, text: str, sound: bytes, *, stopped: bool, interrupted: bool) -> None:
        """Said unasked: kept until the client asks for it, or the user goes on."""
        if interrupted or (not self._holding and self.floor.heard):
            self._drop_held()
        elif self._held is not None and self._holding:
            self._held.append((text, sound))
            self._holding = not stopped

    def _drop_held(self) -> None:
        self._held, self._holding = None, False

    def _wait_on(self, speech: Speech) -> None:
        speech.waited_units += 1
        if speech.waited_units > SILENT_UNITS:
            self.give_up()

    def give_up(self) -> None:
        """A response that the model has not begun ends empty: it was told nothing, or says nothing."""
        if self.speech is not None and self.speech.item is None:
            self.speech.done("completed")
            self.speech = None

    # -- the server --------------------------------------------------------------------------------------------
    def on_refused(self, error: DuplexError) -> None:
        self.emit_error(EventError("text_too_long", error.message, "item.content"), None)

    def on_mended(self, resumed: Resumed) -> None:
        self.emit("wan.server.resumed", seconds=round(resumed.seconds, 3), lost_units=resumed.lost)

    def on_leaving(self, seconds: float) -> None:
        self.emit("wan.server.leaving", seconds=seconds)

    def on_end(self, error: DuplexError | None) -> None:
        code = "session_ended" if error is None else error.code.lower()
        message = "the session is over" if error is None else error.message
        if self.speech is not None:
            self.speech.done("failed", error={"type": "server_error", "code": code, "message": message})
        if error is not None:
            self.emit_error(EventError(code, message), None, "server_error")
