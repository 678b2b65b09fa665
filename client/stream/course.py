"""A session's course through outages: how its units are numbered, and what becomes of those that an outage takes.

The caller's units keep their numbers. Units that were left out here never were any at the server, which counts on
without a gap: the answer to the first unit after an outage says how far apart the two clocks are from then on.
"""

from __future__ import annotations

import time
from dataclasses import replace

from .errors import DuplexError
from .flight import Owed
from .reconnect import RESUME_ANYWHERE, Outage, Resumed
from .units import UnitResponse, UnitShape, UserUnit, blank


class Course:
    """answered: units with an answer.  resumed: outages that are over.  lost: units whose answers were lost.  skipped:
    units that were left out.  outage: the one that is not over.  next: the caller's next unit."""

    def __init__(self, shape: UnitShape) -> None:
        self.answered = self.resumed = self.lost = self.skipped = 0
        self.outage: Outage | None = None
        self.next = 0
        self.shift = 0  # the caller's index minus the server's
        self._shape = shape
        self._newest = -1  # the newest unit that was answered, as the server counts
        self._last: UnitResponse | None = None
        self._typed: list[str] = []  # in units that the server never had: goes along with the next one

    def skip(self, unit: UserUnit) -> None:
        """The unit fell into the outage."""
        self.skipped += 1
        self.next = unit.index + 1
        if self.outage is not None:
            self.outage.skipped += 1
        if unit.text:
            self._typed.append(unit.text)

    def leave(self, unit: UserUnit, at: float) -> tuple[UserUnit, Owed]:
        """The unit as the server is to get it at the moment `at`, and what is owed for it then."""
        text, self._typed = " ".join(filter(None, (*self._typed, unit.text))), []
        number = unit.index - self.shift if self.outage is None else 0 if self.outage.anew else RESUME_ANYWHERE
        self.next = unit.index + 1
        return replace(unit, index=number, text=text), Owed(unit.index, number, at, text)

    def lose(self, owed: Owed) -> UnitResponse:
        """What stands for the answer to a unit that was under way when the stream broke."""
        if self.outage is not None:
            self.outage.lose(owed.number, owed.text)
        self.lost += 1
        return blank(owed.index, self._shape, self._last, time.monotonic())

    def begin_anew(self) -> None:
        """The session is lost: the next unit is the first one of another."""
        if self.outage is not None:
            self.outage.anew = True
            self._typed += self.outage.unheard(0)
        self._newest = -1

    def postpone(self, owed: Owed) -> UnitResponse:
        """Units of the old stream are still under way at the server: not this unit resumes the session but the next."""
        self._typed += [owed.text] if owed.text else []
        return self.lose(owed._replace(number=RESUME_ANYWHERE))

    def answer(self, response: UnitResponse, owed: Owed | None) -> tuple[UnitResponse, Resumed | None]:
        """The response by the caller's numbers, and news if it is the first after an outage. Raises DuplexError when
        its number goes back."""
        if response.unit_index <= self._newest:
            got = f"expected more than {self._newest} from the server, got {response.unit_index}"
            raise DuplexError("INTERNAL", f"unit_index: {got}")
        self._newest = response.unit_index
        news = None
        outage = self.outage
        if owed is not None and outage is not None:
            self.outage = None
            self.shift = owed.index - response.unit_index
            self._typed += outage.unheard(response.unit_index)
            if self.answered:  # a start that took several tries interrupted nothing
                self.resumed += 1
                seconds = response.received - outage.began
                news = Resumed(owed.index, seconds, outage.lost, outage.skipped, outage.anew)
        self.answered += 1
        if self.shift:
            response = replace(response, unit_index=response.unit_index + self.shift)
        self._last = response
        return response, news
