"""Client events of `/v1/realtime`: each is checked, obeyed, or answered with an `error` event that names it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from client.stream.units import Float32

from ..events import Event, EventError, EventReader, wrong
from ..media import Format, Resampler
from .items import ROLES, Item, new_id
from .session import RealtimeSession

DATA_URL = "data:image/"
MAX_REMEMBERED = 64 << 10  # characters of an item that the client keeps here


class Commands(EventReader):
    """Reader of one session's client events. `resume` takes (session id, last event number) to another session."""

    def __init__(self, session: RealtimeSession, resume: Callable[[str, int], Awaitable[None]]) -> None:
        super().__init__(session.call, session.emit_error)
        self._session = session
        self._resume = resume
        self._up = Resampler(session.config.input.rate, session.call.shape.sample_rate)
        self._uncommitted = 0  # samples since the last commit
        self._typed: list[str] = []  # items that nobody has asked to answer yet
        self._untold = False  # nor one that the model is not told
        self.handlers = {
            "session.update": self._update,
            "session.resume": self._do_resume,
            "input_audio_buffer.append": self._append,
            "input_audio_buffer.commit": self._commit,
            "input_audio_buffer.clear": self._clear,
            "conversation.item.create": self._item_create,
            "conversation.item.retrieve": self._item_retrieve,
            "conversation.item.delete": self._item_delete,
            "conversation.item.truncate": self._item_truncate,
            "response.create": self._response_create,
            "response.cancel": self._response_cancel,
            "output_audio_buffer.clear": self._output_clear,
            "playback.ack": self._playback_ack,
            "wan.video.append": self._video_append,
        }

    # -- session -----------------------------------------------------------------------------------------------
    async def _update(self, event: Event) -> None:
        given = event.get("session")
        if not isinstance(given, dict):
            raise wrong("session", "an object", given)
        session = self._session
        config, refused = session.config.updated(given, session.call.prompts.choose, started=session.call.started)
        if config.input.rate != self._up.source:
            self._up = Resampler(config.input.rate, session.call.shape.sample_rate)
        session.configure(config)
        session.emit("session.updated", session=session.show())
        for error in refused:
            session.emit_error(error, event.get("event_id"))

    async def _do_resume(self, event: Event) -> None:
        key, last = event.get("session_id"), event.get("last_event_id")
        number = last.removeprefix("event_") if isinstance(last, str) else ""
        if not isinstance(key, str) or not number.isdecimal() or len(number) > 15:
            raise wrong("session_id", "it, and last_event_id such as event_42")
        if self._session.call.started:
            raise EventError("session_started", "session.resume: this session has begun; open a new connection for it")
        await self._resume(key, int(number))

    def _start(self) -> None:
        self._session.call.start(self._session.config.model_options())

    # -- a media track -----------------------------------------------------------------------------------------
    @property
    def rate(self) -> int:
        return self._session.call.shape.sample_rate

    @property
    def form(self) -> Format:
        return self._session.config.output

    def hear(self, sound: Float32) -> None:
        self._session.call.intake.add_pcm(sound)
        self._uncommitted += sound.size
        self._start()

    # -- the user ----------------------------------------------------------------------------------------------
    async def _append(self, event: Event) -> None:
        sound = await self.sound(self._session.config.input, event.get("audio"), "audio", goes_on=True)
        self._hear(sound, "audio")

    def _hear(self, sound: Any, where: str) -> None:
        try:
            self.hear(self._up.feed(sound))
        except ValueError as error:
            raise EventError("invalid_audio", str(error), where) from None

    async def _commit(self, event: Event) -> None:
        if not self._uncommitted:
            raise EventError(
                "input_audio_buffer_commit_empty", "input_audio_buffer.commit: no audio since the last one"
            )
        self._uncommitted = 0
        self._session.floor.commit()

    async def _clear(self, event: Event) -> None:
        self._uncommitted, self.rest = 0, b""
        self._session.call.intake.clear_pcm()
        self._session.emit("input_audio_buffer.cleared")

    async def _video_append(self, event: Event) -> None:
        self._session.call.intake.add_frames(await self.picture(event.get("image"), "image"))
        self._start()

    # -- items -------------------------------------------------------------------------------------------------
    async def _item_create(self, event: Event) -> None:
        """Everything is read before anything is changed: a refused item leaves no trace."""
        given, session = event.get("item"), self._session
        if not isinstance(given, dict):
            raise wrong("item", "an object", given)
        kind, role = given.get("type"), given.get("role")
        role = role if kind == "message" else kind
        if role not in ROLES:
            known = "a message with role user, assistant or system, a function_call or its output"
            raise wrong("item", known, f"{kind} {role}")
        chosen = given.get("id")
        item = Item(chosen if isinstance(chosen, str) else new_id("item"), str(role))
        session.items.check_id(item.id)
        sounds, pictures = [], []
        if item.role == "user":
            sounds, pictures = await self._read_content(given, item)
        else:
            item.given = {name: value for name, value in given.items() if name not in ("id", "object", "status")}
        if (size := len(json.dumps(item.given)) + len(item.text)) > MAX_REMEMBERED:
            raise wrong("item", f"at most {MAX_REMEMBERED} characters", size)
        typed = [*self._typed, item.text] if item.role == "user" and item.text else self._typed
        size, most = sum(len(text.encode(errors="replace")) for text in typed), session.call.intake.text_bytes
        if size > most:  # no error: frameworks hand over whole pages by themselves, and some die of any error
            self._untold = True
            typed, item.untold = self._typed, f"text: expected at most {most} bytes that wait for an answer, got {size}"
        for where, sound in sounds:
            self._hear(sound, where)
        for picture in pictures:
            session.call.intake.add_frames(picture)
        self._typed = [] if item.role == "assistant" else typed  # what came before it was answered, elsewhere
        previous = session.items.last
        session.items.add(item)
        for name in session.wording.item_events(complete=True):
            session.emit(name, previous_item_id=previous, item=item.show(session.wording))

    async def _read_content(self, given: Event, item: Item) -> tuple[list[tuple[str, Any]], list[Any]]:
        """Text into `item`; sounds, each with its place, and pictures."""
        content = given.get("content")
        if not isinstance(content, list) or not content or not all(isinstance(part, dict) for part in content):
            raise wrong("item.content", "a list of parts")
        sounds: list[tuple[str, Any]] = []
        pictures: list[Any] = []
        for place, part in enumerate(content):
            where = f"item.content[{place}]"
            kind, text, url = (part.get(name) for name in ("type", "text", "image_url"))
            if kind == "input_text" and isinstance(text, str) and text.strip():
                item.pieces.append((0.0, text))
            elif kind == "input_audio":
                item.modality, form = "audio", self._session.config.input
                before = sum(sound.size for _, sound in sounds)
                where += ".audio"
                sounds.append((where, await self.sound(form, part.get("audio"), where, before=before)))
            elif kind == "input_image" and isinstance(url, str) and url.startswith(DATA_URL):
                pictures.append(await self.picture(url.partition(",")[2], f"{where}.image_url"))
            else:
                raise wrong(where, "input_text, input_audio or input_image (a data: URL) with content")
        return sounds, pictures

    async def _item_retrieve(self, event: Event) -> None:
        item = self._session.items.get(event.get("item_id"), "retrieve")
        self._session.emit("conversation.item.retrieved", item=item.show(self._session.wording))

    async def _item_delete(self, event: Event) -> None:
        item = self._session.items.delete(event.get("item_id"))
        if item.text in self._typed:
            self._typed.remove(item.text)
        self._session.emit("conversation.item.deleted", item_id=item.id)

    async def _item_truncate(self, event: Event) -> None:
        session = self._session
        item = session.items.heard(event.get("item_id"), event.get("audio_end_ms"))
        end = round(item.heard_ms or 0)
        if session.speech is not None and session.speech.item is item and not session.speech.over:
            session.cancel(None)  # a client that truncates what is being said has stopped it
        session.emit("conversation.item.truncated", item_id=item.id, content_index=0, audio_end_ms=end)

    async def _playback_ack(self, event: Event) -> None:
        item = self._session.items.heard(event.get("item_id"), event.get("audio_end_ms"))
        end = round(item.heard_ms or 0)
        self._session.emit("playback.acked", item_id=item.id, audio_end_ms=end, heard_text=item.heard_text)

    # -- responses ---------------------------------------------------------------------------------------------
    async def _response_create(self, event: Event) -> None:
        given = event.get("response")
        self._session.ask(given if isinstance(given, dict) else {})
        if self._untold and not self._typed:
            self._session.give_up()
        typed, self._typed, self._untold = self._typed, [], False
        for text in typed:
            try:
                self._session.call.intake.add_text(text)
            except ValueError as error:
                self._session.emit_error(EventError("text_too_long", str(error)), event.get("event_id"))
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
