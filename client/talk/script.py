"""A scripted user: what he does when, what is due for it, and what the agent made of it.

script.json lies beside the sound and the pictures and was written with them; this module reads it and compares. Answers
are judged by the text that the agent sent, delays by the clock of the conversation.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..media.source import Caption, TypedText, UserSource, read_source
from ..stream.errors import MediaError
from ..stream.units import UNIT_SECONDS, UnitShape
from .conversation import Conversation, UnitRecord

NAME = "script.json"
KINDS = ("say", "type", "show", "murmur", "quiet")
_STOP_UNITS = 6  # an agent that is still speaking so long after an interruption did not stop for it


@dataclass(frozen=True)
class Mark:
    """Something that the agent did at `seconds` (or failed to do), written beside its voice."""

    seconds: float
    text: str
    good: bool = True


@dataclass(frozen=True)
class Event:
    """One thing that the user does, in seconds. words: the due answer; interrupts: the agent is to stop for it; cut: it
    is interrupted itself, so only its first word is due."""

    kind: str
    start: float
    stop: float
    caption: str
    words: tuple[str, ...]
    interrupts: bool
    cut: bool
    text: str

    @property
    def first_unit(self) -> int:
        """The unit in which it begins."""
        return int(self.start / UNIT_SECONDS)

    @property
    def due_unit(self) -> int:
        """The first unit in which an answer can begin."""
        return int((self.start if self.kind == "show" else self.stop) / UNIT_SECONDS)


@dataclass(frozen=True)
class Script:
    """The user's half minute: `folder` holds user.flac and user.mp4 as well."""

    folder: Path
    language: str
    seconds: float
    voices: str
    events: tuple[Event, ...]

    @classmethod
    def read(cls, folder: Path) -> Script:
        """Raises MediaError when there is none, or one that does not say what it must."""
        path = folder / NAME
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            events = tuple(_event(item) for item in data["events"])
            found = cls(folder, str(data["language"]), float(data["seconds"]), str(data["voices"]), events)
        except FileNotFoundError:
            raise MediaError(f"{path}: no such file") from None
        except (ValueError, KeyError, TypeError) as error:
            raise MediaError(f"{path}: not a script of format 1 ({type(error).__name__}: {error})") from None
        if data.get("format") != 1:
            raise MediaError(f"{path}: expected format 1, got {data.get('format')!r}")
        return found

    def source(self, shape: UnitShape, seconds: float | None = None) -> UserSource:
        """The user as the client plays him; `seconds` cuts him off."""
        found = read_source(
            shape,
            audio=self.folder / "user.flac",
            video=self.folder / "user.mp4",
            typed=[TypedText(e.start, e.text) for e in self.events if e.kind == "type"],
            tail=0.0,
            seconds=min(self.seconds, seconds or self.seconds),
        )
        captions = tuple(Caption(e.start, e.stop, e.caption) for e in self.events)
        return replace(found, captions=captions)


@dataclass(frozen=True)
class Verdict:
    """What the agent made of one event.

    given: its words.  heard: the user's, as it wrote them down.  response_ms: from the end of the user's sound (or from
    typing, or from the moment the card moves into view) to the arrival of the unit with the first word.  stop_ms: from
    the beginning of the interruption to the arrival of the first unit that listens.
    """

    event: Event
    right: bool
    given: tuple[str, ...] = ()
    response_ms: float | None = None
    stop_ms: float | None = None
    heard: str = ""


@dataclass(frozen=True)
class Verdicts:
    """All of them, in order."""

    items: tuple[Verdict, ...]

    @property
    def right(self) -> int:
        return sum(item.right for item in self.items)

    def summary(self) -> dict[str, Any]:
        """For report.json."""
        rows = [
            {
                "at_seconds": round(v.event.start, 2),
                "user": v.event.caption,
                "expected": _expected(v.event),
                "heard": v.heard,
                "given": " ".join(v.given),
                "right": v.right,
                "response_ms": _rounded(v.response_ms),
                "stop_ms": _rounded(v.stop_ms),
            }
            for v in self.items
        ]
        return {"right": self.right, "of": len(self.items), "events": rows}

    def marks(self) -> list[Mark]:
        """For the timeline: when the agent answered and when it stopped."""
        marks = []
        for v in self.items:
            if v.stop_ms is not None:
                marks.append(Mark(v.event.start + v.stop_ms / 1e3, f"silent after {v.stop_ms:.0f} ms"))
            due = v.event.start if v.event.kind == "show" else v.event.stop
            if v.response_ms is not None:
                text = f"answers after {v.response_ms:.0f} ms" + ("" if v.right else f": not “{_expected(v.event)}”")
                marks.append(Mark(due + v.response_ms / 1e3, text, v.right))
            elif not v.right:
                marks.append(Mark(due, f"not “{_expected(v.event)}”", False))
        return marks


def judge(script: Script, talk: Conversation) -> Verdicts:
    """Compares a conversation with the script, up to where it was held."""
    held = [e for e in script.events if e.stop / UNIT_SECONDS < len(talk.units) - 1]
    return Verdicts(tuple(_judge(event, _until(held, number, len(talk.units)), talk.units)
                          for number, event in enumerate(held)))  # fmt: skip


def _judge(event: Event, until: int, units: Sequence[UnitRecord]) -> Verdict:
    if event.kind == "quiet":
        spoke = [u for u in units[event.first_unit : event.due_unit] if _speaking(u)]
        return Verdict(event, not spoke, _words(spoke))
    if event.kind == "murmur":
        # Its last unit is heard one later; the agent must have been speaking, or there was nothing to keep up.
        during = units[max(0, event.first_unit - 1) : event.due_unit + 1]
        return Verdict(event, all(_speaking(u) for u in during))
    stop_ms, from_unit = None, event.due_unit
    if event.interrupts:
        stopped = _first_silent(units, event.first_unit)
        if stopped is not None and stopped.received_ms is not None:
            stop_ms = stopped.received_ms - event.start * 1e3
            from_unit = max(from_unit, stopped.index)
    said = [u for u in units[from_unit:until] if _speaking(u)]
    given = _words(said)
    first = next((u for u in said if u.text.strip()), None)
    response = None
    if first is not None and first.received_ms is not None:
        response = first.received_ms - (event.start if event.kind == "show" else event.stop) * 1e3
    right = given[:1] == event.words[:1] if event.cut else given == event.words
    heard = "".join(u.heard for u in units[event.first_unit : until]).strip()
    return Verdict(event, right and (stop_ms is not None or not event.interrupts), given, response, stop_ms, heard)


def _until(events: Sequence[Event], number: int, end: int) -> int:
    """The unit at which what the agent says is no longer about event `number`."""
    for later in events[number + 1 :]:
        if later.kind != "murmur":
            # What interrupts is heard a unit after it begins; until then the old sentence goes on.
            return later.first_unit + 1 if later.interrupts else later.first_unit
    return end


def _first_silent(units: Sequence[UnitRecord], onset: int) -> UnitRecord | None:
    """The first unit that listens after an interruption; None if the agent did not speak then, or did not stop."""
    if onset < 1 or not _speaking(units[onset - 1]):
        return None
    return next((u for u in units[onset : onset + _STOP_UNITS] if not _speaking(u)), None)


def _speaking(unit: UnitRecord) -> bool:
    return unit.received_ms is not None and unit.state != "listen"


def _words(units: Sequence[UnitRecord]) -> tuple[str, ...]:
    return tuple("".join(u.text for u in units).split())


def _expected(event: Event) -> str:
    if event.kind == "quiet":
        return "silence"
    if event.kind == "murmur":
        return "speaks on"
    return event.words[0] if event.cut else " ".join(event.words)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _event(item: dict[str, Any]) -> Event:
    if item["kind"] not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {item['kind']!r}")
    words = tuple(str(word) for word in item["words"])
    return Event(
        kind=item["kind"],
        start=float(item["start"]),
        stop=float(item["stop"]),
        caption=str(item["caption"]),
        words=words,
        interrupts=bool(item["interrupts"]),
        cut=bool(item["cut"]),
        text=str(item["text"]),
    )
