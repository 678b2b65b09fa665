"""Turns scenarios into what the model sees and what it shall produce, as arrays of units."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine_builder.config import FRAMES_PER_UNIT, LanguageConfig
from engine_builder.tokenizer import heard_ids, note_ids, tiny_tokenizer, word_ids

from .camera import Camera, CardShow, sensor_noise_bank
from .echo import Echo
from .face import CYCLE_UNITS, LOOKS, film, glances, mouth_levels, poses
from .notes import Notes
from .personas import Persona
from .room import Room
from .scenario import QUIET, Habits, Scenario, Simulator
from .speech import warps
from .speech.agent_voice import UNIT, agent_voice
from .speech.cast import Cast
from .speech.people import People
from .speech.voices import Pcm, VoiceBank, other_voices, user_voices
from .words import PEOPLE

NO_WORD = -1
TRAIN_VOICES, HELD_OUT_VOICES = 240, 48
_LEVELS = (-32, -15)  # dB of full scale, of a user's words
TRAINED_LEVELS = (-38, -12)
IN_ROOM = 0.35  # of training conversations
_TUNES = 60  # that training hears: with six, the model begins to speak at new music
_LOUD_NOISE = 1.4  # exponent on the uniform draw of the SNR in training: 35 % of conversations below 8 dB instead of 23


@dataclass(frozen=True)
class Conversation:
    """K units. Inputs: user_pcm [K, 2560], camera uint8 [K, 4, 64, 64, 3], typed int64 [K, text_tokens] (pad_id where
    nothing), prompt int64 [P], the persona's references.

    Targets: agent_pcm [K + 1, 2560] and face uint8 [K + 1, 4, 64, 64, 3], whose first unit is the one before unit 0;
    state int64 [K] (0 listen, 1 speak); word int64 [K], the text token of the unit or NO_WORD; heard int64 [K], the
    token of the user's word that was understood in the unit, or NO_WORD; notes int64 [K, 2], the tokens of what is
    known after the unit, or NO_WORD. `first_unit` is the index of unit 0 in its session."""

    scenario: Scenario
    persona: Persona
    first_unit: int
    prompt: NDArray[np.int64]
    user_pcm: Pcm
    camera: NDArray[np.uint8]
    typed: NDArray[np.int64]
    agent_pcm: Pcm
    face: NDArray[np.uint8]
    state: NDArray[np.int64]
    word: NDArray[np.int64]
    heard: NDArray[np.int64]
    notes: NDArray[np.int64]


class Studio:
    """Everything that conversations are made of: speakers, room, agent voice, artist. Seeds name conversations.

    echo: share of conversations in which the agent's voice comes back into the user's microphone.
    """

    def __init__(
        self,
        cache: Path,
        split: str = "train",
        voices: int | None = None,
        habits: Habits | None = None,
        people: People | None = None,
        cast: Cast | None = None,
        echo: Echo | None = None,
    ) -> None:
        held_out = split == "held_out"
        count = voices or (HELD_OUT_VOICES if held_out else TRAIN_VOICES)
        self.held_out = held_out
        if cast is None:
            speakers = user_voices(split, count) + ([] if held_out else other_voices())
            cast = Cast(VoiceBank.load(speakers, cache), people, training=not held_out)
        self.cast, self.echo = cast, echo or (Echo(0.0) if held_out else Echo())
        self.agent = agent_voice(PEOPLE[0])  # every voice has its timing
        self.room = Room(2) if held_out else Room(1, _TUNES)
        self.simulator = Simulator(self.cast, self.agent, habits)
        self._sensor = sensor_noise_bank(2 if held_out else 1)
        self._language = LanguageConfig()
        self._words, self._heard = word_ids(self._language), heard_ids(self._language)
        self._notes = note_ids(self._language)
        self._tokenizer = tiny_tokenizer(self._language)
        self._split = 1 if held_out else 0

    def conversation(
        self,
        seed: int,
        units: int,
        first_unit: int = 0,
        language: str | None = None,
        quiet: bool = False,
        persona: Persona | None = None,
    ) -> Conversation:
        """Conversation number `seed` of this split: the same arrays for the same arguments.

        `first_unit` > 0 gives a stretch from the middle of a session: unit -1 is an idle agent with notes. `quiet`:
        nobody says, types or shows anything, but there may be noise, music and knocks. `persona`: whom the agent is;
        None: anybody in training, and who it is by itself in the held-out split.
        """
        rng = np.random.default_rng([self._split, seed])
        notes = Notes.drawn(rng) if first_unit else None
        scene = self.simulator.run(rng, units, language, QUIET if quiet else None, notes)
        if persona is None:
            persona = Persona() if self.held_out else Persona.drawn(np.random.default_rng([6, self._split, seed]))
        scene.face, scene.voice = persona.face, persona.voice
        agent_pcm = self._agent_audio(scene)
        phase = 0 if first_unit == 0 else int(rng.integers(CYCLE_UNITS)) * FRAMES_PER_UNIT
        typed = np.full((units, self._language.text_tokens), self._language.pad_id, dtype=np.int64)
        for unit, word in scene.typed.items():
            typed[unit, 0] = self._words[word]
        shows = [CardShow(colour, first, stop) for colour, first, stop in scene.cards]
        camera = Camera(rng, self._sensor, self.held_out).frames(units * FRAMES_PER_UNIT, shows)
        prompt = self._tokenizer.encode(persona.prompt(scene.language)).ids
        return Conversation(
            scenario=scene,
            persona=persona,
            first_unit=first_unit,
            prompt=np.array(prompt, dtype=np.int64),
            user_pcm=self._user_audio(scene, rng, agent_pcm, 0.5 if quiet else 0.15),
            camera=camera.reshape(units, FRAMES_PER_UNIT, *camera.shape[1:]),
            typed=typed,
            agent_pcm=np.concatenate([np.zeros((1, UNIT), dtype=np.float32), agent_pcm]),
            face=self._face(scene, agent_pcm, phase, np.random.default_rng([5, self._split, seed])),
            state=np.array(scene.state, dtype=np.int64),
            word=np.array([NO_WORD if w is None else self._words[w] for w in scene.starts], dtype=np.int64),
            heard=np.array([NO_WORD if w is None else self._heard[w] for w in scene.heard], dtype=np.int64),
            notes=np.array([self._noted(notes) for notes in scene.notes], dtype=np.int64),
        )

    def _noted(self, notes: Notes) -> list[int]:
        return [*(self._notes[text] for text in notes.texts()), NO_WORD, NO_WORD][:2]

    def snr(self, rng: np.random.Generator) -> float:
        """Speech over noise, 0 to 35 dB; training hears more of the loud noise, where the mistakes are."""
        draw = float(rng.random())
        return 35.0 * (draw if self.held_out else draw**_LOUD_NOISE)

    def _agent_audio(self, scene: Scenario) -> Pcm:
        """[K, 2560]; an interrupted sentence fades out over the first 20 ms of the unit that stops it."""
        voice = agent_voice(scene.voice)
        out = np.zeros((len(scene.playing), UNIT), dtype=np.float32)
        ramp = np.linspace(1.0, 0.0, 320, dtype=np.float32)
        before: tuple[tuple[str, ...], int] | None = None
        for unit, now in enumerate(scene.playing):
            if now is not None:
                out[unit] = voice.sentence(scene.language, now[0])[0][now[1]]
            elif before is not None:
                sentence = voice.sentence(scene.language, before[0])[0]
                if before[1] + 1 < len(sentence):
                    out[unit, :320] = sentence[before[1] + 1, :320] * ramp
            before = now
        return out

    def _face(self, scene: Scenario, agent_pcm: Pcm, phase: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        """[K + 1, 4, 64, 64, 3], starting one unit early."""
        frames = FRAMES_PER_UNIT
        mouths = np.concatenate([np.zeros(frames, dtype=np.int64), mouth_levels(agent_pcm.reshape(-1))])
        attentive = np.repeat(np.array([False, *scene.attentive]), frames)
        nods = [(r.unit + 1) * frames for r in scene.reactions if r.action == "nod"]
        aside = glances(rng, phase - frames, mouths.size)
        face = film(poses(phase - frames, mouths, attentive, nods, aside), LOOKS[scene.face])
        return face.reshape(-1, frames, *face.shape[1:])

    def _user_audio(self, scene: Scenario, rng: np.random.Generator, agent_pcm: Pcm, disturbed: float) -> Pcm:
        """Speech at one loudness, noise 0 to 35 dB below it, with probability `disturbed` music, and knocks; the
        agent's voice from a loudspeaker."""
        units, size = len(agent_pcm), agent_pcm.size
        level = 10.0 ** (rng.uniform(*(_LEVELS if self.held_out else TRAINED_LEVELS)) / 20)
        out = np.zeros(size, dtype=np.float32)
        for u in scene.utterances:
            word = u.pcm
            loud = word[np.abs(word) > 0.02]
            gain = level * 10.0 ** (rng.uniform(-2, 2) / 20) / max(float(np.sqrt((loud**2).mean())), 1e-3)
            stop = min(u.stop, size)
            if u.start < size:
                out[u.start : stop] += gain * word[: stop - u.start]
        if not self.held_out and rng.random() < IN_ROOM:
            out = warps.in_room(out, rng)
        noise = level * 10.0 ** (-self.snr(rng) / 20)
        kind = rng.random()
        if kind < 0.9:
            out += noise * self.room.noise(rng, size)
        if kind < disturbed:
            start, length = int(rng.integers(size)), int(rng.integers(UNIT * 6, UNIT * 40))
            stop = min(start + length, size)
            out[start:stop] += level * 10.0 ** (-rng.uniform(3, 20) / 20) * self.room.music(rng, stop - start)
        if rng.random() < disturbed:
            knock = self.room.knock(rng)
            start = int(rng.integers(size))
            stop = min(start + knock.size, size)
            out[start:stop] += level * rng.uniform(0.5, 4.0) * knock[: stop - start]
        if self.echo.share:
            out += self.echo.of(agent_pcm, rng)
        return np.clip(out, -1.0, 1.0).reshape(units, UNIT)
