"""Conversation items: what was said by whom, and how much of it was heard."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from ..events import wrong
from .wording import Wording

KEPT = 128
MAX_ID = 64  # characters of an id that a client chose
ROLES = ("user", "assistant", "system", "function_call", "function_call_output")  # of messages, and other items


def new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(10)}"


@dataclass
class Item:
    """One message. pieces: the agent's text with the millisecond of audio at which each piece begins, or the user's."""

    id: str
    role: str
    modality: str = "text"  # audio or text
    status: str = "completed"
    pieces: list[tuple[float, str]] = field(default_factory=list)
    audio_ms: float = 0.0  # sent to the client
    heard_ms: float | None = None  # said to have been played
    untold: str | None = None  # why the model is not told the text
    given: dict[str, Any] | None = None  # what a client remembers for itself; the model does not know it

    @property
    def text(self) -> str:
        return "".join(piece for _, piece in self.pieces)

    @property
    def heard_text(self) -> str:
        """Text whose audio had begun when playback stopped."""
        limit = self.audio_ms if self.heard_ms is None else self.heard_ms
        return "".join(piece for start, piece in self.pieces if start < limit or not self.audio_ms)

    def show(self, wording: Wording) -> dict[str, Any]:
        """The item object of the events."""
        if self.given is not None:
            return {"id": self.id, "object": "realtime.item", "status": self.status, **self.given}
        if self.role == "assistant":
            content = [wording.part(self.modality, self.text)]
        elif self.modality == "audio":
            content = [{"type": "input_audio", "transcript": self.text or None}]
        else:
            content = [{"type": "input_text", "text": self.text}]
        item: dict[str, Any] = {
            "id": self.id,
            "object": "realtime.item",
            "type": "message",
            "role": self.role,
            "status": self.status,
            "content": content,
        }
        if self.untold is not None:
            item["wan"] = {"untold": self.untold}
        if self.heard_ms is not None:
            item["wan"] = {"heard_ms": round(self.heard_ms), "heard_text": self.heard_text}
        return item


class Items:
    """The newest items of a conversation, in order."""

    def __init__(self) -> None:
        self._items: OrderedDict[str, Item] = OrderedDict()

    @property
    def last(self) -> str | None:
        """Id of the newest item."""
        return next(reversed(self._items), None)

    def check_id(self, item_id: str) -> None:
        """Raises EventError for an id that is taken or too long."""
        if item_id in self._items or not 0 < len(item_id) <= MAX_ID:
            raise wrong("item.id", f"a new id of up to {MAX_ID} characters")

    def add(self, item: Item) -> Item:
        """Raises EventError for an id that is taken or too long."""
        self.check_id(item.id)
        self._items[item.id] = item
        while len(self._items) > KEPT:
            self._items.popitem(last=False)
        return item

    def get(self, given: Any, purpose: str) -> Item:
        """purpose: retrieve, delete or truncate. Raises EventError when there is none."""
        item = self._items.get(given) if isinstance(given, str) else None
        if item is None:
            raise wrong("item_id", "an item of this conversation", repr(given), f"item_{purpose}_invalid_item_id")
        return item

    def delete(self, given: Any) -> Item:
        """Raises EventError when there is none."""
        return self._items.pop(self.get(given, "delete").id)

    def heard(self, item_id: Any, end_ms: Any) -> Item:
        """Records that `item_id` was played up to `end_ms`. Raises EventError for what cannot have been."""
        item = self.get(item_id, "truncate")
        if item.role != "assistant" or not item.audio_ms:
            raise wrong("item_id", "a message of the agent with audio")
        if not isinstance(end_ms, int | float) or isinstance(end_ms, bool) or not 0 <= end_ms <= item.audio_ms + 1:
            raise wrong("audio_end_ms", f"0 to {item.audio_ms:.0f} (sent so far)", repr(end_ms))
        item.heard_ms = float(end_ms)
        return item
