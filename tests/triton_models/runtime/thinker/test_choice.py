"""Which token a think pass chooses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from engine_builder.config import LanguageConfig
from triton_models.runtime.thinker.choice import Choice

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("ahead", "chosen"), [(-1.0, 0), (0.0, 0), (0.9, 0), (1.0, 0), (1.1, 1), (9.0, 1)])
def test_a_bias_asks_a_state_to_be_so_much_likelier(ahead: float, chosen: int) -> None:
    language = replace(LanguageConfig(), state_bias=(0.0, -1.0))
    logits = np.full((2, language.vocab_size), 20.0, dtype=np.float32)  # of text, which is no state
    logits[1, list(language.state_ids)] = 3.0, 3.0 + ahead
    assert Choice(language).state({"logits": logits}, 1) == language.state_ids[chosen]


def test_without_a_bias_the_likeliest_is_chosen_and_the_first_of_equals() -> None:
    language = LanguageConfig()
    logits = np.zeros((1, language.vocab_size), dtype=np.float32)
    assert Choice(language).state({"logits": logits}, 0) == language.state_ids[0]
    logits[0, language.state_ids[1]] = 1e-3
    assert Choice(language).state({"logits": logits}, 0) == language.state_ids[1]
