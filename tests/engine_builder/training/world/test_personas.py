"""Who the agent is: what was shown is imitated, the rest follows what was said, and everything fits the wire."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from client.stream import UnitShape
from client.web.call.personas import Personas
from engine_builder.tokenizer import tiny_tokenizer
from engine_builder.training.judges.likeness import faces_of, voice_of
from engine_builder.training.world.personas import MOST_UNITS, PROMPT_TOKENS, Persona, write_references
from engine_builder.training.world.words import LANGUAGES, PEOPLE
from triton_models.runtime.messages import MAX_PERSONA_UNITS

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed"),
]
WOMAN, MAN = PEOPLE


@pytest.mark.parametrize(
    ("told", "face", "voice", "expected"),
    [
        (None, None, None, (WOMAN, WOMAN)),
        (MAN, None, None, (MAN, MAN)),
        (None, MAN, None, (MAN, MAN)),
        (None, None, MAN, (MAN, MAN)),
        (WOMAN, MAN, None, (MAN, WOMAN)),
        (MAN, None, WOMAN, (MAN, WOMAN)),
        (WOMAN, MAN, WOMAN, (MAN, WOMAN)),
    ],
)
def test_what_is_shown_counts_most_then_what_is_told(
    told: str | None, face: str | None, voice: str | None, expected: tuple[str, str]
) -> None:
    persona = Persona.of(np.random.default_rng(1), told, face, voice)
    assert (persona.face, persona.voice) == expected
    assert persona.units == (MOST_UNITS if voice else int(face is not None))


def test_drawn_personas_look_and_sound_as_they_shall_and_fit_their_places() -> None:
    tokenizer, likenesses = tiny_tokenizer(), []
    for seed in range(60):
        persona = Persona.drawn(np.random.default_rng(seed))
        assert 0 <= persona.units <= MOST_UNITS
        for language in LANGUAGES:
            assert len(tokenizer.encode(persona.prompt(language)).ids) <= PROMPT_TOKENS
        if persona.picture is not None:
            assert faces_of(persona.picture[None]) == [persona.face]
        if persona.sound is not None and len(persona.sound) > 4:
            likenesses.append(voice_of(persona.sound.reshape(-1)) == persona.voice)
    assert len(likenesses) > 10
    assert sum(likenesses) >= 0.9 * len(likenesses)  # some are silence and noise mostly


def test_references_reach_the_wire_as_they_were_drawn(tmp_path: Path) -> None:
    assert MOST_UNITS == MAX_PERSONA_UNITS
    write_references(tmp_path)
    personas = Personas(tmp_path)
    assert set(personas.names) == set(PEOPLE)
    shown = personas.applied({"voice": MAN}, UnitShape(2560, 64, 64))["persona"]
    assert {"picture", "voice"} <= set(shown)
