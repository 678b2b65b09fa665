"""Events that clients send as JSON: each is checked and obeyed, or answered with an error that names it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from client.stream.units import Float32, UInt8

from . import media
from .call.call import Call
from .call.outbox import Closing
from .media import Format

log = logging.getLogger(__name__)

Event = dict[str, Any]
MAX_EVENT_ID = 512
MAX_COMMAS = 20_000  # of an event: a million small values would take the loop for seconds to read
PIECE = 1 << 18  # characters of base64 that are decoded at once; in between others have their turn


class EventError(Exception):
    """A client event that cannot be obeyed; it is answered with an `error` event and changes nothing."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


def wrong(where: str, expected: str, got: object = None, code: str = "invalid_value") -> EventError:
    """An EventError for the field `where`."""
    shown = f", got {str(got)[:120]}" if got is not None else ""
    return EventError(code, f"{where}: expected {expected}{shown}", where)


class Refuser(Protocol):
    """Sends an `error` event. event_id: of the client's event.  kind: whose fault it is."""

    def __call__(self, error: EventError, event_id: str | None, kind: str = ...) -> None: ...


class EventReader:
    """Reader of one client's events over a call; `handlers` by type are the caller's to fill in."""

    def __init__(self, call: Call, refuse: Refuser) -> None:
        self.handlers: Mapping[str, Callable[[Event], Awaitable[None]]] = {}
        self._call = call
        self._refuse = refuse
        self.rest = b""  # half a sample: some cut their sound anywhere, and the next piece goes on there

    async def on_text(self, data: str) -> None:
        event_id = None
        try:
            event = _parse(data)
            event_id = event.get("event_id")
            if not (event_id is None or (isinstance(event_id, str) and len(event_id) <= MAX_EVENT_ID)):
                event_id = None
                raise wrong("event_id", f"up to {MAX_EVENT_ID} characters")
            kind = event.get("type")
            handler = self.handlers.get(kind) if isinstance(kind, str) else None
            if handler is None:
                raise wrong("type", f"one of {', '.join(self.handlers)}", kind or "none", "unknown_event")
            await handler(event)
        except EventError as error:
            self._refuse(error, event_id)
        except Exception:
            log.exception("an event of session %s failed", self._call.key[:6])
            error = EventError("server_error", "the gateway failed at this event; its log says how")
            self._refuse(error, event_id, "server_error")

    async def on_binary(self, data: bytes) -> None:
        await self.on_text(data.decode(errors="replace"))

    # -- over media tracks -------------------------------------------------------------------------------------
    @property
    def form(self) -> Format:
        """Of the sound in what is sent to this client."""
        raise NotImplementedError

    def voice(self, message: str | bytes) -> Float32:
        """float32 [n] of an event of the agent's sound."""
        return self.form.decode(base64.b64decode(json.loads(message)["delta"]))

    def goodbye(self, why: Closing) -> str | None:
        """The protocols that speak in events have no such one."""
        return None

    async def sound(self, form: Format, given: Any, where: str, goes_on: bool = False, before: int = 0) -> Float32:
        """float32 [n] at the rate of `form`.  goes_on: it is a piece of the stream, and no sound by itself.
        before: samples that the same event has brought already."""
        try:
            if isinstance(given, str):  # at least so long, however the base64 is cut into lines: not worth decoding?
                samples = before + len(given) * 3 // 5 // form.width
                self._call.intake.check_room(samples / form.rate * self._call.shape.sample_rate)
            data = (self.rest if goes_on else b"") + await _base64(given, where)
            whole = len(data) - len(data) % form.width
            if goes_on:
                self.rest = data[whole:]
            return form.decode(data[:whole])
        except ValueError as error:
            raise EventError("invalid_audio", str(error), where) from None

    async def picture(self, given: Any, where: str) -> UInt8:
        """uint8 [1, H, W, 3]; refused by its head if it is too large, or too many come."""
        pixels = self._call.pixels
        try:
            image = media.open_image(await _base64(given, where))
            if not pixels.take(image.width * image.height):
                raise wrong(where, f"{pixels.rate:.0f} pixels a second at most", code="rate_limit_exceeded")
            return await media.decode_in_turn(image, self._call.shape)
        except ValueError as error:
            raise EventError("invalid_image", str(error), where) from None


def to_text(event: Event) -> str:
    """As JSON. Half a character (of a cut surrogate pair), which no UTF-8 has, becomes a question mark."""
    return json.dumps(event, ensure_ascii=False).encode(errors="replace").decode()


def _parse(data: str) -> Event:
    if (commas := data.count(",")) > MAX_COMMAS:
        raise EventError("invalid_json", f"expected at most {MAX_COMMAS} commas, got {commas}")
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        raise EventError("invalid_json", "expected a JSON object") from None
    if not isinstance(event, dict):
        raise EventError("invalid_json", "expected a JSON object")
    return event


async def _base64(value: Any, where: str) -> bytes:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where}: expected base64, got {type(value).__name__}")
    begin = value.find(",") + 1 if value.startswith("data:") else 0
    parts, rest = [], ""
    try:
        for at in range(begin, len(value), PIECE):
            if at > begin:
                await asyncio.sleep(0)
            rest += "".join(value[at : at + PIECE].split())
            whole = rest[: (len(rest) - 1) // 4 * 4]  # not the last four, which alone may be padded
            if "=" in whole:
                raise binascii.Error
            parts.append(base64.b64decode(whole, validate=True))
            rest = rest[len(whole) :]
        return b"".join((*parts, base64.b64decode(rest + "=" * (-len(rest) % 4), validate=True)))
    except (binascii.Error, ValueError):
        raise ValueError(f"{where}: expected base64, got something else") from None
