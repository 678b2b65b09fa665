"""Who has the floor: turns the model's state and a level meter into the turn events that Realtime clients live by."""

from __future__ import annotations

from client.stream.units import UNIT_MS, UNIT_SECONDS, Float32

from ..call.fence import SPEAK
from ..call.hearing import BARGE_IN_UNITS, Hearing
from .items import Item, Items, new_id
from .speech import Emit
from .wording import Wording

LATE_UNITS = 12  # for which words that the model heard may belong to what was committed before them
MAX_WORDS = 4000  # characters that wait for an item; a client without turn detection may never commit
TRANSCRIPTION = "conversation.item.input_audio_transcription"
PAUSE_UNITS = 4  # this much silence ends what the user says, if the model has not answered before


class Floor:
    """The user's side of the turns. `enabled`: the client wants turn detection; `transcribes`: it wants the words."""

    def __init__(self, emit: Emit, wording: Wording, items: Items) -> None:
        self.enabled = self.transcribes = True
        self.speaking = False  # the agent
        self.heard = False  # the user, in the newest unit
        self._emit = emit
        self._wording = wording
        self._items = items
        self._hearing = Hearing()
        self._item_id: str | None = None  # of what the user is saying
        self._words = ""  # that the model heard and no item has yet
        self._wordless: tuple[Item, float] | None = None  # the newest one and its seconds, until its words are there
        self._unit = -1  # the newest
        self._since = 0  # unit with which the item, or what is to become one, begins

    def hear(self, unit: int, pcm: Float32, state: str, words: str = "") -> tuple[bool, bool, bool]:
        """One unit: what the user said, the agent's state after it, and the words that the model heard.

        Returns whether the agent has begun to speak, stopped, and stopped because of the user.
        """
        self._unit, self._words = unit, (self._words + words)[-MAX_WORDS:]
        heard = self.heard = self._hearing.feed(pcm)
        speaks = state == SPEAK
        began, stopped = speaks and not self.speaking, self.speaking and not speaks
        self.speaking = speaks
        interrupted = stopped and self._hearing.quiet_units < BARGE_IN_UNITS
        if began or (self._item_id is not None and self._hearing.quiet_units >= PAUSE_UNITS):
            self._user_stops(unit)
        elif self._item_id is None and (interrupted or (heard and not speaks)):
            self._user_starts(unit)
        if self._words and self._item_id is None:
            self._late_words()
        return began, stopped, interrupted

    def commit(self) -> None:
        """The user's turn becomes an item, by detection or by the client."""
        previous = self._items.last
        item = self._items.add(Item(self._item_id or new_id("item"), "user", "audio"))
        self._item_id = None
        self._emit("input_audio_buffer.committed", item_id=item.id, previous_item_id=previous)
        for name in self._wording.item_events(complete=True):
            self._emit(name, previous_item_id=previous, item=item.show(self._wording))
        seconds, self._since = (self._unit + 1 - self._since) * UNIT_SECONDS, self._unit + 1
        self._wordless = (item, seconds)
        if self._words:
            self._transcribe(*self._wordless)

    def _late_words(self) -> None:
        """Words that came while the user is not speaking: of the item before, or of speech that the meter missed."""
        if self._wordless is not None and self._unit - self._since < LATE_UNITS:
            self._transcribe(*self._wordless)
        elif self.enabled:
            self._since = self._unit
            self.commit()

    def _transcribe(self, item: Item, seconds: float) -> None:
        text, self._words, self._wordless = self._words.strip(), "", None
        item.pieces.append((0.0, text))
        if self.transcribes:
            place = {"item_id": item.id, "content_index": 0}
            self._emit(f"{TRANSCRIPTION}.delta", **place, delta=text)
            usage = {"type": "duration", "seconds": round(seconds, 2)}
            self._emit(f"{TRANSCRIPTION}.completed", **place, transcript=text, usage=usage)

    def _user_starts(self, unit: int) -> None:
        if self.enabled:
            self._item_id, self._since = new_id("item"), unit
            self._emit("input_audio_buffer.speech_started", item_id=self._item_id, audio_start_ms=unit * UNIT_MS)

    def _user_stops(self, unit: int) -> None:
        if self._item_id is not None:
            end = max(0, unit + 1 - self._hearing.quiet_units) * UNIT_MS
            self._emit("input_audio_buffer.speech_stopped", item_id=self._item_id, audio_end_ms=end)
            self.commit()
