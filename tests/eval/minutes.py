"""Does a conversation stay what it was? Accuracy by minute, pooled over long conversations."""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine_builder.training.judges.figures import Tally

_ALLOWED = 0.03  # of accuracy, that the last minute may lie below the first
_ONE_SIDED = 1.645  # standard errors: 5 % of stable conversations are called unstable in a given minute


@dataclass(frozen=True)
class Minutes:
    """right[m] of answers[m] spoken words of minute m were answered rightly, over `sessions` conversations."""

    sessions: int
    right: list[int]
    answers: list[int]

    @classmethod
    def of(cls, tallies: list[Tally], minutes: int) -> Minutes:
        right, answers = [0] * minutes, [0] * minutes
        for tally in tallies:
            for m in range(minutes):
                right[m] += tally.hits[f"minute_{m}"]
                answers[m] += tally.trials[f"minute_{m}"]
        return cls(len(tallies), right, answers)

    def share(self, minute: int) -> float:
        """Accuracy of a minute, 0 without answers."""
        return self.right[minute] / self.answers[minute] if self.answers[minute] else 0.0

    def error(self, minute: int) -> float:
        """Standard error of (accuracy of `minute` - accuracy of the first), from the pooled accuracy."""
        n, m = self.answers[0], self.answers[minute]
        if not n or not m:
            return math.inf
        p = (self.right[0] + self.right[minute]) / (n + m)
        return math.sqrt(p * (1 - p) * (1 / n + 1 / m))

    @property
    def last_minus_first(self) -> float:
        """Points of accuracy that the last minute gains (or, negative, loses) against the first."""
        return 100 * (self.share(len(self.right) - 1) - self.share(0))

    @property
    def within_three_points(self) -> bool:
        """The requirement as it is written: by what was counted, without allowance for chance."""
        return bool(self.right) and self.last_minus_first >= -100 * _ALLOWED

    @property
    def stable(self) -> int:
        """Minutes up to the first that lies more than 3 points below minute one by more than chance allows (one-sided
        5 %). The last minute gets no such allowance."""
        last = len(self.right) - 1
        for m in range(1, last + 1):
            allowance = 0.0 if m == last else _ONE_SIDED * self.error(m)
            if self.share(m) < self.share(0) - _ALLOWED - allowance:
                return m
        return last + 1

    def summary(self) -> dict[str, object]:
        """For summary.json."""
        count = len(self.right)
        return {
            "conversations": self.sessions,
            "accuracy": [round(self.share(m), 4) for m in range(count)],
            "answers": self.answers,
            "last_minus_first_points": round(self.last_minus_first, 2),
            "standard_error_points": round(100 * self.error(count - 1), 2),
            "within_3_points": self.within_three_points,
        }
