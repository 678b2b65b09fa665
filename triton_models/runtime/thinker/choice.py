"""Which token a think pass chooses: the likeliest, the first of equals; of states after their bias."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from engine_builder.config import LanguageConfig


class Choice:
    """Of the outputs of a pass: `logits` [B, V], or what was chosen from them on their device."""

    def __init__(self, language: LanguageConfig) -> None:
        self.states = language.state_ids
        self.bias = np.array(language.biases, dtype=np.float32)
        self.barred = [i for i in language.special_ids if i != language.eou_id]  # never chosen for a text slot

    def state(self, out: Mapping[str, Any], b: int) -> int:
        """The state that row `b` begins with."""
        if "state_token" in out:
            return int(out["state_token"][b])
        return self.states[int((out["logits"][b].take(self.states) + self.bias).argmax())]

    def text(self, out: Mapping[str, Any], b: int) -> int:
        """Text or <eou>. Changes the logits if something else is likelier."""
        if "text_token" in out:
            return int(out["text_token"][b])
        logits = out["logits"][b]
        token = int(logits.argmax())
        if token in self.barred:
            logits[self.barred] = -np.inf
            token = int(logits.argmax())
        return token
