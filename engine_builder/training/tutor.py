"""What the number tutor is besides its weights: the model that is trained, and what suits it where a client says
nothing."""

from __future__ import annotations

from dataclasses import replace

from ..config import ModelConfig, SolverConfig
from ..manifest import Defaults
from ..presets import preset
from .world.personas import Persona, words_for
from .world.words import LANGUAGES, PEOPLE

STATE_BIAS = (0.0, -1.0)  # of listening and speaking: it speaks where that is e times as likely
SHIFT = 3.0  # of the solver, to the noisy end, where it is chosen whither idle eyes look

DEFAULTS: Defaults = {
    "retention": {"window": {"sink": 0, "recent": 16}},
    "prompts": [
        Persona(words=words_for(person)).prompt(language) for person in (None, *PEOPLE[1:]) for language in LANGUAGES
    ],
    "text_bytes": 16,
}


def model_config() -> ModelConfig:
    """Of a tutor that is trained from chance."""
    tiny = preset("tiny")
    language = replace(tiny.language, state_bias=STATE_BIAS)
    return replace(tiny, language=language, solver=SolverConfig(shift=SHIFT))
