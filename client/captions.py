"""Text of a conversation, gathered into turns and made safe to draw."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from client.conversation import UnitRecord

GAP_UNITS = 3  # this many units without text end a turn, and so does a change of the agent's state


@dataclass(frozen=True)
class Turn:
    """Text that belongs together: units `first` to `last`, both included."""

    first: int
    last: int
    text: str


def turns(units: Iterable[UnitRecord]) -> list[Turn]:
    """The agent's text as turns, in order."""
    found: list[Turn] = []
    state = ""
    for unit in units:
        if unit.received_ms is None or not unit.text:
            continue
        if found and unit.state == state and unit.index - found[-1].last <= GAP_UNITS:
            found[-1] = Turn(found[-1].first, unit.index, found[-1].text + unit.text)
        else:
            found.append(Turn(unit.index, unit.index, unit.text))
        state = unit.state
    return found


def printable(text: str) -> str:
    """Without control characters and undecodable bytes, which random weights love and fonts do not."""
    kept = (c if c.isprintable() and c != "\N{REPLACEMENT CHARACTER}" else "·" for c in text.replace("\n", " "))
    return "".join(kept)
