"""Who the agent is: one of `PEOPLE`, told by a word of the prompt or shown by references, a picture and a voice.

What is shown is imitated, each for itself: a picture of one and the voice of the other make a person of both. What is
not shown follows the prompt, else the other reference; told and shown nothing, the agent is the first.
"""

from __future__ import annotations

import wave
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .face import ASIDE, HEAD, LOOKS, MOUTH_LEVELS, SIZE, Look, Pose, draw
from .speech.agent_voice import UNIT, agent_voice
from .speech.voices import SAMPLE_RATE, Pcm
from .words import LANGUAGES, PEOPLE, PERSONA_PROMPT, agent_words

MOST_UNITS = 13  # of a voice: 2 s
PROMPT_TOKENS = 8  # that a prompt has at most
_KINDS = ("nothing", "prompt", "both", "picture", "voice")
_SHARES = (0.24, 0.24, 0.24, 0.14, 0.14)
_TOLD_AS_WELL = 0.2  # share of those shown
_IDLE_WORD = 0.2  # share of prompts with a word that means nothing
_WEAK, _STRONG = 0.9, 1.1  # brightness of pictures
_SHIFT = 2  # pixels


@dataclass(frozen=True, eq=False)
class Persona:
    """face and voice: names in `PEOPLE`, how the agent shall look and sound. words: of the prompt, `{}` for the
    language. picture: uint8 [64, 64, 3]; sound: float32 [U, 2560]; None if not shown."""

    face: str = PEOPLE[0]
    voice: str = PEOPLE[0]
    words: str = "{}"
    picture: NDArray[np.uint8] | None = None
    sound: Pcm | None = None

    def prompt(self, language: str) -> str:
        """The text of the prompt."""
        return self.words.format(PERSONA_PROMPT[language])

    @property
    def units(self) -> int:
        """Of the agent's past that the references give (as in `triton_models.runtime.duplex.persona`)."""
        return len(self.sound) if self.sound is not None else int(self.picture is not None)

    @classmethod
    def of(
        cls,
        rng: np.random.Generator,
        told: str | None = None,
        face: str | None = None,
        voice: str | None = None,
        units: int = MOST_UNITS,
    ) -> Persona:
        """told: in the prompt.  face, voice: of a picture, and of `units` units of sound.  None: not told or shown."""
        return cls(
            face or told or voice or PEOPLE[0],
            voice or told or face or PEOPLE[0],
            words_for(told),
            None if face is None else portrait(rng, face),
            None if voice is None else sample(rng, voice, units),
        )

    @classmethod
    def unseen(cls, rng: np.random.Generator) -> Persona:
        """Somebody whom no training knows: a sentence, a face of any colours, and a hum of any pitch."""
        colours = [tuple(map(int, rng.integers(20, 236, size=3))) for _ in range(4)]
        look = Look(*colours, hair_width=rng.uniform(17, 24), hair_height=rng.uniform(18, 24))
        angle = 2 * np.pi * rng.uniform(90, 300) * np.arange(MOST_UNITS * UNIT) / SAMPLE_RATE
        hum = sum(np.sin(n * angle) / n for n in range(1, 12)) * (np.sin(angle / 40) > 0)
        return cls(
            words="you are ada and speak {}",
            picture=draw(Pose(0, 0, 0, 0), look),
            sound=(0.1 * hum).astype(np.float32).reshape(MOST_UNITS, UNIT),
        )

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Persona:
        """For training: anybody, told or shown or neither."""
        kind = str(rng.choice(_KINDS, p=_SHARES))
        told, face, voice = (PEOPLE[int(rng.integers(len(PEOPLE)))] for _ in range(3))
        units = int(rng.integers(1, MOST_UNITS + 1))
        made = cls.of(
            rng,
            told if kind == "prompt" or (kind != "nothing" and rng.random() < _TOLD_AS_WELL) else None,
            face if kind in ("both", "picture") else None,
            voice if kind in ("both", "voice") else None,
            units,
        )
        words = made.words.split()
        if rng.random() < _IDLE_WORD:
            words.append("".join(chr(ord("a") + letter) for letter in rng.integers(26, size=rng.integers(2, 6))))
        return replace(made, words=" ".join(words[i] for i in rng.permutation(len(words))))


def words_for(person: str | None) -> str:
    """Of a prompt that tells the agent to be this person, or tells it nothing."""
    return "{}" if person is None else "{} " + person


def write_references(folder: Path) -> None:
    """PERSON.png and PERSON.wav of everybody, as `python -m client.web --personas` takes them."""
    folder.mkdir(parents=True, exist_ok=True)
    for person in PEOPLE:
        Image.fromarray(draw(Pose(0, 0, 0, 0), LOOKS[person])).save(folder / f"{person}.png", optimize=True)
        said = agent_voice(person).sentence("en", ("hello", "you", "are", "welcome"))[0][:MOST_UNITS]
        with wave.open(str(folder / f"{person}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(SAMPLE_RATE)
            file.writeframes((said.reshape(-1) * 32767).astype("<i2").tobytes())


def portrait(rng: np.random.Generator, person: str) -> NDArray[np.uint8]:
    """A still of a person, open-eyed, a little off and in another light: uint8 [64, 64, 3]."""
    pose = Pose(
        int(rng.integers(MOUTH_LEVELS)), 0, int(rng.integers(-ASIDE, ASIDE + 1)), int(rng.integers(-HEAD, HEAD + 1))
    )
    still = draw(pose, LOOKS[person]).astype(np.float32) * rng.uniform(_WEAK, _STRONG)
    y, x = rng.integers(2 * _SHIFT + 1, size=2)
    still = np.pad(still, ((_SHIFT, _SHIFT), (_SHIFT, _SHIFT), (0, 0)), mode="edge")[y : y + SIZE, x : x + SIZE]
    return np.clip(still + rng.normal(0, rng.uniform(0, 6), still.shape), 0, 255).astype(np.uint8)


def sample(rng: np.random.Generator, person: str, units: int) -> Pcm:
    """Words of a person, begun anywhere, of any loudness, with some noise: float32 [units, 2560]."""
    language = LANGUAGES[int(rng.integers(len(LANGUAGES)))]
    words, voice = agent_words(language), agent_voice(person)
    said: list[Pcm] = []
    while sum(map(len, said)) < units + 3:
        said.append(voice.word(language, words[int(rng.integers(len(words)))]))
    pcm = np.concatenate(said).reshape(-1)
    start = int(rng.integers(pcm.size - units * UNIT + 1))
    out = pcm[start : start + units * UNIT] * rng.uniform(0.5, 1.3)
    out = out + rng.normal(0, 10 ** rng.uniform(-4, -2.3), out.size)
    return np.clip(out, -1, 1).astype(np.float32).reshape(units, UNIT)
