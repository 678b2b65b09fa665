"""Client events of `/v1/realtime`: each is checked, obeyed, or answered with an `error` event that names it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Awaitable, Callable
from typing import Any

from client.web import media as picture
from client.web import sound
from client.web.realtime.items import Item, new_id
from client.web.realtime.session import RealtimeSession
from client.web.realtime.wording import EventError
from client.web.sound import Resampler

Event = dict[str, Any]
MAX_EVENT_ID = 512


class Commands:
    """Reader of one session's client events. `resume` takes (session id, last event number) to another session."""

    def __init__(self, session: RealtimeSession, resume: Callable[[str, int], Awaitable[None]]) -> None:
        self._session = session
        self._resume = resume
        self._up = Resampler(session.config.input_rate, session.call.shape.sample_rate)
        self._uncommitted = 0  # samples since the last commit
        self._handlers: dict[str, Callable[[Event], Awaitable[None]]] = {
            "session.update": self._update,
            "session.resume": self._do_resume,
            "input_audio_buffer.append": self._append,
            "input_audio_buffer.commit": self._commit,
            "input_audio_buffer.clear": self._clear,
            "conversation.item.create": self._item_create,
            "conversation.item.retrieve": self._item_retrieve,
            "conversation.item.truncate": self._item_truncate,
            "response.create": self._response_create,
            "response.cancel": self._response_cancel,
            "output_audio_buffer.clear": self._output_clear,
            "playback.ack": self._playback_ack,
            "wan.video.append": self._video_append,
        }

    async def on_text(self, data: str) -> None:
        event_id = None
        try:
            event = _parse(data)
            event_id = event.get("event_id")
            if not (event_id is None or (isinstance(event_id, str) and len(event_id) <= MAX_EVENT_ID)):
                event_id = None
                raise EventError("invalid_value", f"event_id: expected up to {MAX_EVENT_ID} characters", "event_id")
            kind = event.get("type")
            handler = self._handlers.get(kind) if isinstance(kind, str) else None
            if handler is None:
                known = ", ".join(self._handlers)
                raise EventError("unknown_event", f"type: expected one of {known}; got {str(kind)[:80]!r}", "type")
            await handler(event)
        except EventError as error:
            self._session.emit_error(error, event_id)

    async def on_binary(self, data: bytes) -> None:
        await self.on_text(data.decode(errors="replace"))

    # -- session -----------------------------------------------------------------------------------------------
    async def _update(self, event: Event) -> None:
        given = event.get("session")
        if not isinstance(given, dict):
            raise EventError("invalid_value", "session: expected an object", "session")
        session = self._session
        config = session.config.updated(given, started=session.call.started)
        if config.input_rate != self._up.source:
            self._up = Resampler(config.input_rate, session.call.shape.sample_rate)
        session.configure(config)
        session.emit("session.updated", session=session.show())

    async def _do_resume(self, event: Event) -> None:
        key, last = event.get("session_id"), event.get("last_event_id")
        number = last.removeprefix("event_") if isinstance(last, str) else ""
        if not isinstance(key, str) or not number.isdecimal() or len(number) > 15:
            raise EventError("invalid_value", "expected session_id, and last_event_id such as event_42", "session_id")
        if self._session.call.started:
            raise EventError("session_started", "session.resume: this session has begun; open a new connection for it")
        await self._resume(key, int(number))

    def _start(self) -> None:
        self._session.call.start(self._session.config.model_options())

    # -- the user ----------------------------------------------------------------------------------------------
    async def _append(self, event: Event) -> None:
        self._hear(event.get("audio"), "audio")

    def _hear(self, audio: Any, where: str) -> None:
        try:
            pcm = self._up.feed(sound.from_pcm16(_base64(audio, where)))
            self._session.call.intake.add_pcm(pcm)
        except ValueError as error:
            raise EventError("invalid_audio", str(error), where) from None
        self._uncommitted += pcm.size
        self._start()

    async def _commit(self, event: Event) -> None:
        if not self._uncommitted:
            raise EventError(
                "input_audio_buffer_commit_empty", "input_audio_buffer.commit: no audio since the last one"
            )
        self._uncommitted = 0
        self._session.floor.commit()

    async def _clear(self, event: Event) -> None:
        self._uncommitted = 0
        self._session.call.intake.clear_pcm()
        self._session.emit("input_audio_buffer.cleared")

    async def _video_append(self, event: Event) -> None:
        try:
            data = _base64(event.get("image"), "image")
            frame = await asyncio.to_thread(picture.decode_image, data, self._session.call.shape)
        except ValueError as error:
            raise EventError("invalid_image", str(error), "image") from None
        self._session.call.intake.add_frames(frame)
        self._start()

    # -- items -------------------------------------------------------------------------------------------------
    async def _item_create(self, event: Event) -> None:
        given = event.get("item")
        if not isinstance(given, dict) or given.get("type") != "message" or given.get("role") != "user":
            raise EventError(
                "invalid_value", "item: expected a message with role user (history cannot be edited)", "item"
            )
        content = given.get("content")
        if not isinstance(content, list) or not content or not all(isinstance(part, dict) for part in content):
            raise EventError("invalid_value", "item.content: expected a list of parts", "item.content")
        chosen = given.get("id")
        item = Item(chosen if isinstance(chosen, str) else new_id("item"), "user")
        for place, part in enumerate(content):
            where = f"item.content[{place}]"
            if part.get("type") == "input_text" and isinstance(part.get("text"), str) and part["text"].strip():
                item.pieces.append((0.0, part["text"]))
            elif part.get("type") != "input_audio":
                raise EventError("invalid_value", f"{where}: expected input_text or input_audio with content", where)
        session = self._session
        previous = session.items.last
        session.items.add(item)
        for place, part in enumerate(content):
            if part["type"] == "input_audio":
                self._hear(part.get("audio"), f"item.content[{place}].audio")
                item.modality = "audio"
        if item.text:
            try:
                session.call.intake.add_text(item.text)
            except ValueError as error:
                raise EventError("text_too_long", str(error), "item.content") from None
        for name in session.wording.item_events(complete=True):
            session.emit(name, previous_item_id=previous, item=item.show(session.wording))
        self._start()

    async def _item_retrieve(self, event: Event) -> None:
        item = self._session.items.get(event.get("item_id"))
        self._session.emit("conversation.item.retrieved", item=item.show(self._session.wording))

    async def _item_truncate(self, event: Event) -> None:
        item = self._session.items.heard(event.get("item_id"), event.get("audio_end_ms"))
        end = round(item.heard_ms or 0)
        self._session.emit("conversation.item.truncated", item_id=item.id, content_index=0, audio_end_ms=end)

    async def _playback_ack(self, event: Event) -> None:
        item = self._session.items.heard(event.get("item_id"), event.get("audio_end_ms"))
        end = round(item.heard_ms or 0)
        self._session.emit("playback.acked", item_id=item.id, audio_end_ms=end, heard_text=item.heard_text)

    # -- responses ---------------------------------------------------------------------------------------------
    async def _response_create(self, event: Event) -> None:
        given = event.get("response")
        self._session.ask(given.get("metadata") if isinstance(given, dict) else None)
        self._start()

    async def _response_cancel(self, event: Event) -> None:
        self._session.cancel(event.get("response_id"))

    async def _output_clear(self, event: Event) -> None:
        """What waits to be sent is dropped, and with it the rest of the response."""
        speech = self._session.speech
        response_id = speech.id if speech is not None else None
        if speech is not None and not speech.over:
            self._session.cancel(None)
        self._session.emit("output_audio_buffer.cleared", response_id=response_id)


def _parse(data: str) -> Event:
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        raise EventError("invalid_json", "expected a JSON object") from None
    if not isinstance(event, dict):
        raise EventError("invalid_json", "expected a JSON object")
    return event


def _base64(value: Any, where: str) -> bytes:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where}: expected base64, got {type(value).__name__}")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{where}: expected base64, got something else") from None
