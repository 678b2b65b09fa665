"""One response: the events from response.created to response.done, in the order in which clients expect them."""

from __future__ import annotations

import base64
from typing import Any, Protocol

from ..media import Format
from .items import Item, new_id
from .wording import Wording


class Emit(Protocol):
    """Sends one event. epoch: None passes every fence."""

    def __call__(self, kind: str, *, epoch: int | None = None, **fields: Any) -> None: ...


class Speech:
    """What the agent says from taking the floor to yielding it. Its item exists once the voice begins."""

    def __init__(self, emit: Emit, wording: Wording, modality: str, metadata: Any = None) -> None:
        self.id = new_id("resp")
        self.item: Item | None = None
        self.over = False  # response.done is out; what still comes carries an epoch of the past
        self.waited_units = 0  # since a client asked for it
        self._units = 0  # said
        self._texted = False
        self._emit = emit
        self._wording = wording
        self.modality = modality
        self._metadata = metadata
        emit("response.created", response=self._show("in_progress"))

    def begin(self, item: Item, previous: str | None) -> None:
        """The model speaks."""
        self.item = item
        item.status = "in_progress"
        shown = item.show(self._wording) | {"content": []}
        self._emit("response.output_item.added", response_id=self.id, output_index=0, item=shown)
        for name in self._wording.item_events(complete=False):
            self._emit(name, previous_item_id=previous, item=shown)
        self._emit("response.content_part.added", **self._place(), part=self._wording.stream_part(self.modality))

    def say(self, text: str, sound: bytes, form: Format, epoch: int) -> None:
        """One unit. epoch: of the run of speech it belongs to."""
        item = self.item
        if item is None:
            return
        spoken = self.modality == "audio"
        self._units += 1
        text = text if self._texted else text.lstrip()
        self._texted = self._texted or bool(text)
        if text:
            name = self._wording.transcript if spoken else self._wording.text
            self._emit(f"response.{name}.delta", epoch=epoch, **self._place(), delta=text)
        if spoken and sound:
            delta = base64.b64encode(sound).decode()
            self._emit(f"response.{self._wording.audio}.delta", epoch=epoch, **self._place(), delta=delta)
        if not self.over:
            if text:
                item.pieces.append((item.audio_ms, text))
            if spoken:
                item.audio_ms += len(sound) / form.width * 1000 / form.rate

    def done(self, status: str, **details: Any) -> None:
        """completed, cancelled (reason=...), failed (error=...). Says it once."""
        if self.over:
            return
        self.over = True
        item, place = self.item, self._place()
        if item is not None:
            item.status = "completed" if status == "completed" else "incomplete"
            if self.modality == "audio":
                self._emit(f"response.{self._wording.audio}.done", **place)
                self._emit(f"response.{self._wording.transcript}.done", **place, transcript=item.text)
            else:
                self._emit(f"response.{self._wording.text}.done", **place, text=item.text)
            part = self._wording.stream_part(self.modality, item.text)
            self._emit("response.content_part.done", **place, part=part)
            shown = item.show(self._wording)
            self._emit("response.output_item.done", response_id=self.id, output_index=0, item=shown)
            if not self._wording.beta:
                self._emit("conversation.item.done", item=shown)
        self._emit("response.done", response=self._show(status, {"type": status, **details}))

    def _place(self) -> dict[str, Any]:
        item_id = self.item.id if self.item is not None else None
        return {"response_id": self.id, "item_id": item_id, "output_index": 0, "content_index": 0}

    def _show(self, status: str, details: dict[str, Any] | None = None) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "realtime.response",
            "status": status,
            "status_details": None if status in ("in_progress", "completed") else details,
            "output": [self.item.show(self._wording)] if self.item is not None else [],
            "modalities" if self._wording.beta else "output_modalities": self._wording.modalities(self.modality),
            "metadata": self._metadata,
            "usage": None if status == "in_progress" else self._usage(),
        }

    def _usage(self) -> dict[str, Any]:
        """Clients add these up. A token of audio is one unit of 160 ms here; text is not counted apart."""
        none = {"text_tokens": 0, "audio_tokens": 0}
        return {
            "total_tokens": self._units,
            "input_tokens": 0,
            "output_tokens": self._units,
            "input_token_details": {**none, "cached_tokens": 0},
            "output_token_details": {**none, "audio_tokens": self._units},
        }
