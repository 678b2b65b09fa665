"""Training batches: conversations from a background thread, already turned into latents and token ids."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine_builder.config import FRAMES_PER_UNIT, ModelConfig
from engine_builder.model.duplex import DuplexModel

from ..world.conversation import NO_WORD, Conversation, Studio
from ..world.notes import due
from ..world.personas import MOST_UNITS, PROMPT_TOKENS, Persona
from ..world.scenario import SPEAK
from ..world.speech.agent_voice import UNIT
from .ahead import ahead

_LONGEST_SESSION = 6000  # units: 16 minutes; positions of training reach that far
_FRESH = 0.35  # share of stretches that start a session
_WINDOW = 16  # units that a unit sees, its own included, as served
_SHORTEST = 8  # of the shorter memories: one has notes in it
_SHORT, _LONG = 0.15, 0.4  # shares of stretches with a shorter, and with the longest memory
_LONGEST_GAP = 400  # units: a minute
_FEW_UNITS = 3  # of references, in most batches: every place costs six tokens
_QUIET = 0.24  # share of stretches in which nobody says anything


@dataclass(frozen=True)
class Batch:
    """B stretches of K units; shapes as in `packed_pass.PackedUnits`, plus the raw input of the encoders."""

    prompt: Tensor
    own_video: Tensor
    own_audio: Tensor
    own_units: Tensor
    first_unit: Tensor
    user_pcm: Tensor  # [B, K * N]
    camera: Tensor  # uint8 [B, 4 K, H, W, 3]
    text: Tensor
    slots: Tensor
    z_video: Tensor  # [B, K + 1, n_v, c_v]
    z_audio: Tensor  # [B, K + 1, n_a, c_a]
    state: Tensor  # int64 [B, K]: 0 listen, 1 speak
    word: Tensor  # int64 [B, K]: token id or NO_WORD
    heard: Tensor  # int64 [B, K]: token id or NO_WORD
    notes: Tensor  # int64 [B, K, 2]: token ids of the notes that are written in a unit, or NO_WORD
    reach: Tensor  # int64 [B]: as in `PackedUnits`, like the next two
    cut: Tensor
    gap: Tensor


@dataclass(frozen=True)
class Memory:
    """How much of a stretch its units see, and where time is left out of it (`packed_pass.PackedUnits`)."""

    reach: int
    cut: int = 1
    gap: int = 0

    @classmethod
    def drawn(cls, rng: np.random.Generator, conversation: Conversation) -> Memory:
        """A window as served, or a shorter one, or all there is with minutes left out at a quiet moment."""
        units, draw = len(conversation.state), rng.random()
        if draw < _SHORT:
            return cls(int(rng.integers(_SHORTEST, _WINDOW)))
        if draw < 1 - _LONG:
            return cls(_WINDOW)
        quiet = [unit for unit in range(4, units - 3) if _quiet(conversation, unit)]
        if not quiet:
            return cls(units)
        return cls(units, quiet[int(rng.integers(len(quiet)))], int(np.exp(rng.uniform(0, np.log(_LONGEST_GAP)))))


def _quiet(conversation: Conversation, unit: int) -> bool:
    """Nobody speaks or shows anything around the beginning of `unit`, and no answer is due."""
    scene, first, stop = conversation.scenario, unit - 3, unit + 1
    said = any(u.start < stop * UNIT and u.stop > first * UNIT for u in scene.utterances)
    shown = any(a < stop * FRAMES_PER_UNIT and b > first * FRAMES_PER_UNIT for _, a, b in scene.cards)
    typed = any(first <= k < stop for k in scene.typed)
    return not (said or shown or typed or conversation.state[first:stop].any())


def encode_targets(model: DuplexModel, conversation: Conversation) -> tuple[Tensor, Tensor]:
    """Latents [K + 1, n_v, c_v] and [K + 1, n_a, c_a] of the agent's side, unit -1 first: at the start of
    a session zeros, or a persona's picture."""
    c = model.config
    with torch.no_grad():
        film = torch.from_numpy(conversation.face).flatten(0, 1).unsqueeze(0)
        video = model.video_codec.encode(film, None)[0].view(-1, c.video.tokens, c.video.latent_dim)
        pcm = torch.from_numpy(conversation.agent_pcm).view(1, -1)
        audio, _ = model.audio_codec.encode(pcm, None)
        audio = audio.view(-1, c.audio.tokens, c.audio.latent_dim)
    if conversation.first_unit == 0:
        video[0], audio[0] = _portrait(model, conversation.persona), 0
    return video, audio


def _portrait(model: DuplexModel, persona: Persona) -> Tensor:
    """Latents [n_v, c_v] of a persona's picture, zeros without one."""
    if persona.picture is None:
        return torch.zeros(model.config.video.tokens, model.config.video.latent_dim)
    still = torch.from_numpy(persona.picture).expand(1, FRAMES_PER_UNIT, -1, -1, -1)
    with torch.no_grad():
        return model.video_codec.encode(still, None)[0][0]


def encode_references(model: DuplexModel, persona: Persona) -> tuple[Tensor, Tensor]:
    """Latents [U, n_v, c_v] and [U, n_a, c_a] of a persona's references, zeros for what it does not show."""
    c, units = model.config, persona.units
    video = _portrait(model, persona).repeat(units, 1, 1)
    audio = torch.zeros(units, c.audio.tokens, c.audio.latent_dim)
    if persona.sound is not None:
        with torch.no_grad():
            audio = model.audio_codec.encode(torch.from_numpy(persona.sound).view(1, -1), None)[0].view_as(audio)
    return video, audio


def slot_tokens(config: ModelConfig, state: Tensor, heard: Tensor, word: Tensor, notes: Tensor) -> Tensor:
    """Emitted tokens int64 [..., 3] of units: the state, what was heard, the word, or notes [..., 2]; `pad_id` at the
    end for what there is not."""
    first = torch.where(heard == NO_WORD, word, heard)
    second = torch.where(heard == NO_WORD, NO_WORD, word)
    texts = torch.where(notes == NO_WORD, torch.stack((first, second), dim=-1), notes)
    texts = torch.where(texts == NO_WORD, config.language.pad_id, texts)
    return torch.cat(((config.language.first_state_id + state).unsqueeze(-1), texts), dim=-1)


def collate(
    model: DuplexModel, conversations: list[Conversation], memories: list[Memory], own_units: int = MOST_UNITS
) -> Batch:
    """Stacks conversations of one length. own_units: places for references; what is beyond them is left out."""
    own_video, own_audio, own = _references(model, conversations, own_units)
    latents = [encode_targets(model, conversation) for conversation in conversations]
    state = torch.from_numpy(np.stack([c.state for c in conversations]))
    word = torch.from_numpy(np.stack([c.word for c in conversations]))
    heard = torch.from_numpy(np.stack([c.heard for c in conversations]))
    notes = torch.from_numpy(np.stack([_written(c, m) for c, m in zip(conversations, memories, strict=True)]))
    return Batch(
        prompt=torch.from_numpy(np.stack([_padded(c.prompt, model.config.language.pad_id) for c in conversations])),
        own_video=own_video,
        own_audio=own_audio,
        own_units=own,
        first_unit=torch.tensor([c.first_unit for c in conversations]),
        user_pcm=torch.from_numpy(np.stack([c.user_pcm.reshape(-1) for c in conversations])),
        camera=torch.from_numpy(np.stack([c.camera.reshape(-1, *c.camera.shape[2:]) for c in conversations])),
        text=torch.from_numpy(np.stack([c.typed[:, 0] for c in conversations])),
        slots=slot_tokens(model.config, state, heard, word, notes),
        z_video=torch.stack([video for video, _ in latents]),
        z_audio=torch.stack([audio for _, audio in latents]),
        state=state,
        word=word,
        heard=heard,
        notes=notes,
        reach=torch.tensor([memory.reach for memory in memories]),
        cut=torch.tensor([memory.cut for memory in memories]),
        gap=torch.tensor([memory.gap for memory in memories]),
    )


def _references(model: DuplexModel, conversations: list[Conversation], most: int) -> tuple[Tensor, Tensor, Tensor]:
    c, size = model.config, len(conversations)
    video = torch.zeros(size, most, c.video.tokens, c.video.latent_dim)
    audio = torch.zeros(size, most, c.audio.tokens, c.audio.latent_dim)
    units = torch.zeros(size, dtype=torch.int64)
    for row, conversation in enumerate(conversations):
        shown, sounds = encode_references(model, conversation.persona)
        units[row] = count = min(most, len(shown))
        video[row, :count], audio[row, :count] = shown[:count], sounds[:count]
    return video, audio, units


def _padded(prompt: NDArray[np.int64], pad: int) -> NDArray[np.int64]:
    return np.pad(prompt, (0, PROMPT_TOKENS - len(prompt)), constant_values=pad)


def _written(conversation: Conversation, memory: Memory) -> NDArray[np.int64]:
    known, cut = conversation.notes, memory.cut if memory.gap else 0
    free = (conversation.word == NO_WORD) & (conversation.heard == NO_WORD)
    units = due((conversation.state == SPEAK).tolist(), free.tolist(), (known[:, 0] != NO_WORD).tolist(), cut)
    return np.where(np.array(units)[:, None], known, NO_WORD)


def batches(model: DuplexModel, studio: Studio, size: int, units: int, seed: int, first: int = 0) -> Generator[Batch]:
    """Batches `first`, `first` + 1, ..., made ahead.

    Batch i is made of the seed's conversations i * size ... (i + 1) * size - 1, whatever the thread's timing: a run
    that goes on from another's weights, under another seed, hears nothing twice.
    """
    offset = seed << 32

    def make(number: int) -> Batch:
        talks = [_stretch(studio, offset + number * size + i, units) for i in range(size)]
        rng = np.random.default_rng([4, number])
        own_units = MOST_UNITS if number % 4 == 0 else _FEW_UNITS
        return collate(model, talks, [Memory.drawn(rng, talk) for talk in talks], own_units)

    return ahead(make, first)


def _stretch(studio: Studio, seed: int, units: int) -> Conversation:
    rng = np.random.default_rng([3, seed])
    fresh = rng.random() < _FRESH
    first_unit = 0 if fresh else int(np.exp(rng.uniform(0, np.log(_LONGEST_SESSION))))
    return studio.conversation(seed, units, first_unit, quiet=rng.random() < _QUIET)
