"""What the agent keeps of a conversation, and when it writes that down for itself.

A unit sees the last 16 units. So the agent keeps what it may be asked for later in notes: tokens of its own language
slots (`<note:said 7>`) that no client gets, written after an answer and again before the last copy is out of sight, in
units that have no word to write. So a memory of any length costs two tokens a second and no longer window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .words import COLOURS, SOCIAL, Meaning

EVERY = 6  # units from note to note: a window of eight has one in sight, one of sixteen two or three
_ASKS = ("again", "recall")


@dataclass(frozen=True)
class Notes:
    """last: what was answered last, questions for it left out; said: the user's last digit, spoken or typed."""

    last: Meaning | None = None
    said: int | None = None

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Notes:
        """Of a conversation that has been going on for some time."""
        said, draw = int(rng.integers(10)), rng.random()
        if draw < 0.7:
            return cls(Meaning("digit", said), said)
        if draw < 0.85:
            return cls(Meaning("colour", int(rng.integers(len(COLOURS["en"])))), said)
        return cls(Meaning(tuple(SOCIAL["en"])[int(rng.integers(len(SOCIAL["en"])))]), said)

    def meant(self, meaning: Meaning) -> Meaning:
        """What an answer to `meaning` says: of 'again' what was answered last; 'unknown' if there is nothing yet."""
        if meaning.kind == "again":
            return self.last or Meaning("unknown")
        if meaning.kind == "recall":
            return Meaning("unknown") if self.said is None else Meaning("recall", self.said)
        return meaning

    def after(self, meaning: Meaning) -> Notes:
        """Once `meaning` is being answered."""
        if meaning.kind in _ASKS:
            return self
        return replace(self, last=meaning, said=meaning.index if meaning.kind == "digit" else self.said)

    def texts(self) -> tuple[str, ...]:
        """As they are written, at most two; nothing of nothing."""
        if self.last is None:
            return ()
        kind, index = self.last.kind, self.last.index
        last = kind
        if kind == "digit":
            last = f"digit {index}"
        elif kind == "colour":
            last = f"colour {COLOURS['en'][index]}"
        return (last,) if self.said is None else (last, f"said {self.said}")


def due(speaking: Sequence[bool], free: Sequence[bool], known: Sequence[bool], cut: int = 0) -> list[bool]:
    """Units in which the notes are written: there is room (no word said or heard) and something known, and either it
    has stopped speaking or wrote them `EVERY` units ago. Time is left out before unit `cut`, so that the notes before
    it are old."""
    out, last = [], -EVERY
    spoke = False
    for unit, (speaks, room, knows) in enumerate(zip(speaking, free, known, strict=True)):
        old = unit - last >= EVERY or last < cut <= unit
        write = room and knows and (old or (spoke and not speaks))
        spoke = speaks or (spoke and not write)
        last = unit if write else last
        out.append(write)
    return out
