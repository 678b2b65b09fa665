"""Text of a conversation, gathered into turns and made safe to draw."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import matplotlib
from matplotlib.ft2font import FT2Font

from ..talk.conversation import UnitRecord

_UNFIT = re.compile(r"[\0\ufffd]+")
GAP_UNITS = 3  # this many units without text end a turn, and so does a change of the agent's state


@dataclass(frozen=True)
class Turn:
    """Text that belongs together: units `first` to `last`, both included."""

    first: int
    last: int
    text: str


def turns(units: Iterable[UnitRecord], name: Literal["text", "heard"] = "text") -> list[Turn]:
    """The agent's text, or what it heard of the user, as turns in order."""
    found: list[Turn] = []
    state = ""
    for unit in units:
        words = getattr(unit, name)
        if unit.received_ms is None or not words:
            continue
        if found and (unit.state == state or name == "heard") and unit.index - found[-1].last <= GAP_UNITS:
            found[-1] = Turn(found[-1].first, unit.index, found[-1].text + words)
        else:
            found.append(Turn(unit.index, unit.index, words))
        state = unit.state
    return found


def dialogue(units: Sequence[UnitRecord]) -> list[tuple[str, Turn]]:
    """Who said what, in order; the user as the agent heard it, and as typed."""
    typed = [Turn(u.index, u.index, u.user_text) for u in units if u.user_text]
    said = [("user", turn) for turn in (*turns(units, "heard"), *typed)]
    return sorted([*said, *(("agent", turn) for turn in turns(units))], key=lambda pair: pair[1].first)


def printable(text: str) -> str:
    """What the font of the pictures can show; each run of anything else (random weights love it) becomes one dot."""
    marked = "".join(c if ord(c) in _glyphs() else "\0" for c in text.replace("\n", " "))
    return _UNFIT.sub("\N{MIDDLE DOT}", marked)


def font(bold: bool = False) -> Path:
    """The font of everything that is drawn: matplotlib carries it, so it is there on every machine."""
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"DejaVuSans{'-Bold' if bold else ''}.ttf"


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    return frozenset(code for code in FT2Font(str(font())).get_charmap() if chr(code).isprintable())
