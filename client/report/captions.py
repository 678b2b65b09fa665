"""Text of a conversation, gathered into turns and made safe to draw."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

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
    """What the font of the pictures can show; each run of anything else (random weights love it) becomes one dot."""
    marked = "".join(c if ord(c) in _glyphs() else "\0" for c in text.replace("\n", " "))
    return _UNFIT.sub("\N{MIDDLE DOT}", marked)


def font(bold: bool = False) -> Path:
    """The font of everything that is drawn: matplotlib carries it, so it is there on every machine."""
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"DejaVuSans{'-Bold' if bold else ''}.ttf"


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    return frozenset(code for code in FT2Font(str(font())).get_charmap() if chr(code).isprintable())
