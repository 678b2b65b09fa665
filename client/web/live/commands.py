"""Client events of `/v1/live/sessions`, and those of its sidebands."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from client.stream.units import Float32

from ..events import Event, EventError, EventReader, wrong
from ..media import Format
from .config import LiveConfig, read_update
from .session import Append, LiveSession

_NO_BACKEND = "no Responses or Decisions backend is here; what the model delegates goes to the application"
_REFUSED = {
    **dict.fromkeys(
        ("decision.create", "decision.item.create", "decision.item.delete", "response.create", "response.item.create"),
        _NO_BACKEND,
    ),
    "session.output_audio.fixture.play": "nothing but the model's own voice is played",
    "transport.dtmf.send": "there is no SIP trunk here",
}


class LiveCommands(EventReader):
    """Reader of one socket. sideband: it observes and steers a session that another socket owns."""

    def __init__(self, session: LiveSession, *, sideband: bool) -> None:
        super().__init__(session.call, session.emit_error)
        self._session = session
        own: dict[str, Callable[[Event], Awaitable[None]]] = {
            "session.start": self._start,
            "session.input_audio.append": self._hear,
            "wan.video.append": self._see,
        }
        self.handlers = {
            **({} if sideband else own),
            "session.update": self._update,
            "session.input_audio.mute": self._mute,
            "session.input_audio.unmute": self._mute,
            "session.instructions.append": self._append,
            "session.thinking.append": self._append,
            "session.commentary.append": self._append,
            "session.close": self._close,
            **dict.fromkeys(_REFUSED, self._cannot),
        }

    # -- a media track -----------------------------------------------------------------------------------------
    @property
    def rate(self) -> int:
        return self.form.rate

    @property
    def form(self) -> Format:
        return (self._session.config or LiveConfig()).form

    def hear(self, sound: Float32) -> None:
        self._session.hear(sound)

    # -- events ------------------------------------------------------------------------------------------------
    async def _start(self, event: Event) -> None:
        session = self._session
        if session.config is not None:
            raise EventError("session_already_started", "session.start: this connection has its session", "type")
        call = session.call
        config = LiveConfig.read(event.get("session"), call.prompts.choose, call.personas.names)
        session.start(config, event.get("event_id"))

    def _begun(self, event: Event) -> LiveConfig:
        if self._session.config is None:
            raise EventError("session_not_started", f"{event['type']}: expected session.start before it", "type")
        return self._session.config

    async def _hear(self, event: Event) -> None:
        self.hear(await self.sound(self._begun(event).form, event.get("audio"), "audio", goes_on=True))

    async def _see(self, event: Event) -> None:
        self._begun(event)
        self._session.call.intake.add_frames(await self.picture(event.get("image"), "image"))

    async def _update(self, event: Event) -> None:
        session = self._session
        session.config = read_update(event.get("session"), self._begun(event))
        session.emit("session.updated", session=session.show(), client_event_id=event.get("event_id"))

    async def _mute(self, event: Event) -> None:
        self._begun(event)
        session = self._session
        session.muted = event["type"].endswith(".mute")
        kind = "session.input_audio.muted" if session.muted else "session.input_audio.unmuted"
        session.emit(kind, client_event_id=event.get("event_id"))

    async def _append(self, event: Event) -> None:
        self._begun(event)
        session, content, owner = self._session, event.get("content"), event.get("delegation_id")
        if not isinstance(content, str) or not content.strip():
            raise wrong("content", "some text", content)
        if owner is not None and owner not in session.delegations:
            raise wrong("delegation_id", "null or that of a session.delegation.created", owner)
        text = content.encode(errors="replace").decode()
        try:
            session.call.intake.add_text(text)
        except ValueError as error:
            raise EventError("text_too_long", str(error), "content") from None
        session.appends.append(Append(event["type"].split(".")[1], text, event.get("event_id")))

    async def _close(self, event: Event) -> None:
        self._session.close(event.get("event_id"))

    async def _cannot(self, event: Event) -> None:
        raise EventError("unsupported_event", f"{event['type']}: {_REFUSED[event['type']]}", "type")
