"""Which prompts the served checkpoint was trained on, as its model configuration says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Prompts:
    """known: the prompts it was trained on, the default first; empty: it takes any."""

    known: tuple[str, ...] = ()

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> Prompts:
        """From `prompts` of the model's parameters, a JSON list; one that cannot be read is not there."""
        try:
            given = json.loads(parameters.get("prompts", "[]"))
        except ValueError:
            given = []
        return cls(tuple(p for p in given if isinstance(p, str) and p) if isinstance(given, list) else ())

    def choose(self, asked: str) -> str:
        """The prompt in force: what was asked, where the model knows it or takes any; the one known prompt of most
        words all of which stand in it ("Answer in English, as a man."); else the default. A strange one would be read
        letter by letter, and may be answered with nonsense."""
        if not self.known:
            return asked
        words = {word.strip(".,:;!?\"'()").casefold() for word in asked.split()}
        whole = [p for p in self.known if set(p.casefold().split()) <= words]
        most = max((len(p.split()) for p in whole), default=0)
        named = [p for p in self.known if p == asked] or [p for p in whole if len(p.split()) == most]
        return named[0] if len(named) == 1 else self.known[0]
