"""Warm-up of the audio encoder: which word was heard, and does a word or a murmur begin?

In joint training a word is one token in ten units. Here every window of a second is an example: half of them end where
an answer would start and ask for the word, half end where the agent would fall silent and ask whether what has just
begun is speech. The classifier heads are thrown away afterwards.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from engine_builder.model.duplex import DuplexModel
from engine_builder.model.perception import AudioEncoder, LatentEncoder

from ..world.conversation import IN_ROOM, TRAINED_LEVELS, Studio
from ..world.scenario import HEARD, STOP_HEARD
from ..world.speech import warps
from ..world.speech.agent_voice import UNIT
from ..world.speech.cast import NOBODY
from ..world.speech.voices import Pcm
from ..world.words import BACKCHANNELS, DIGITS, LANGUAGES, user_words
from .devices import device_of, home
from .masks import listen
from .warm_up import warm_up

UNITS = 6  # of a window: 960 ms
_ONSET_UNITS = 2  # the second head looks at the last ones only
_WORDS = [(language, word) for language in LANGUAGES for word in user_words(language)]
_PEOPLES = [("en", word) for word in DIGITS["en"]]  # what people were recorded with
NOTHING, MURMUR = 0, 1  # classes of both heads; 2 and above: words (first head), speech (second head)
_NOTHING_SHARE, _MURMUR_SHARE = 0.15, 0.2
_SMOOTHING = 0.05  # of the words' labels
_ANCHOR = 1.0  # weight of the distance to what a trained encoder said, in its variances


@dataclass(frozen=True)
class Windows:
    """pcm float32 [B, UNITS * N]; classes int64 [B]; the first `whole` ask for the word, the others for the onset."""

    pcm: Tensor
    classes: Tensor
    whole: int


def windows(studio: Studio, rng: np.random.Generator, count: int) -> Windows:
    """`count` windows, half of each kind."""
    whole = count // 2
    drawn = [_window(studio, rng, ends=i < whole) for i in range(count)]
    return Windows(
        torch.from_numpy(np.stack([pcm for pcm, _ in drawn])), torch.tensor([kind for _, kind in drawn]), whole
    )


def _window(studio: Studio, rng: np.random.Generator, ends: bool) -> tuple[Pcm, int]:
    size = UNITS * UNIT
    level = 10.0 ** (rng.uniform(*TRAINED_LEVELS) / 20)
    draw = rng.random()
    clip, kind = np.zeros(0, dtype=np.float32), NOTHING
    if draw >= _NOTHING_SHARE:
        speaker = studio.cast.speaker(rng)
        if draw < _NOTHING_SHARE + _MURMUR_SHARE:
            language, text, kind = "en", BACKCHANNELS[int(rng.integers(len(BACKCHANNELS)))], MURMUR
        else:
            # A person's words are few: drawn among all, six of 48 windows that ask for a word would be a person's.
            words = _WORDS if speaker.person == NOBODY else _PEOPLES
            language, text = words[int(rng.integers(len(words)))]
            kind = 2 + (_WORDS.index((language, text)) if ends else 0)
        clip = studio.cast.word(rng, speaker, language, text)
    pcm = studio.room.noise(rng, size) * level * 10.0 ** (-studio.snr(rng) / 20)
    if kind == NOTHING and rng.random() < 0.6:
        knock = studio.room.knock(rng) if rng.random() < 0.5 else 0.5 * studio.room.music(rng, size)
        start = int(rng.integers(max(1, size - knock.size + 1)))
        pcm[start : start + knock.size] += level * rng.uniform(0.3, 3.0) * knock[: size - start]
    elif kind != NOTHING:
        loud = clip[np.abs(clip) > 0.02]
        clip = clip * (level / max(float(np.sqrt((loud**2).mean())), 1e-3))
        heard = int(rng.integers(HEARD, HEARD + UNIT)) if ends else int(rng.integers(STOP_HEARD, STOP_HEARD + UNIT))
        start = size - heard - (clip.size if ends else 0)
        clip = clip[max(0, -start) :]
        start = max(0, start)
        pcm[start : start + clip.size] += clip[: size - start]
        if rng.random() < IN_ROOM:
            pcm = warps.in_room(pcm.astype(np.float32), rng)
    return np.clip(pcm, -1.0, 1.0).astype(np.float32), kind


class _Heads(nn.Module):
    def __init__(self, hidden_size: int, tokens: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, elementwise_affine=False)
        self.tokens = tokens
        self.word = nn.Linear(UNITS * tokens * hidden_size, 2 + len(_WORDS))
        self.onset = nn.Linear(_ONSET_UNITS * tokens * hidden_size, 3)

    def forward(self, percepts: Tensor, whole: int) -> tuple[Tensor, Tensor]:
        """percepts [B, UNITS * n_ea, d] -> logits of the words [whole, 2 + W] and of the onsets [B - whole, 3]."""
        x = self.norm(percepts)
        return self.word(x[:whole].flatten(1)), self.onset(x[whole:, -_ONSET_UNITS * self.tokens :].flatten(1))


def _percepts(encoder: AudioEncoder | LatentEncoder, pcm: Tensor) -> Tensor:
    """What it says of sound without holes."""
    pcm = pcm.to(device_of(encoder))
    return encoder(pcm, pcm.new_zeros(len(pcm), encoder.state_size))[0]


def with_longer_ears(model: DuplexModel, dilations: Sequence[int]) -> DuplexModel:
    """`model` whose audio encoder ends in more convolutions, which look further back. They begin at zero, so that the
    model is the same function until they learn (function-preserving growth, Chen et al. 2016, arXiv:1511.05641)."""
    audio = model.config.audio
    grown = DuplexModel(
        replace(model.config, audio=replace(audio, encoder_dilations=(*audio.encoder_dilations, *dilations)))
    )
    fresh = grown.load_state_dict(model.state_dict(), strict=False).missing_keys
    for name, parameter in grown.named_parameters():
        if name in fresh:
            nn.init.zeros_(parameter)
    return grown


def open_ears(
    model: DuplexModel,
    studio: Studio,
    seed: int,
    steps: int = 1500,
    batch: int = 96,
    anchored: bool = False,
) -> tuple[float, float]:
    """Trains `model.audio_encoder`; returns the shares of fresh windows (same voices) classified correctly by the word
    head and by the onset head.

    anchored: the rest of the model has learned with this encoder: what it says stays near what it said of the same
    sound without holes.
    """
    torch.manual_seed(seed)
    encoder = model.audio_encoder
    anchor = copy.deepcopy(encoder).requires_grad_(False) if anchored else None
    heads = _Heads(model.config.backbone.hidden_size, model.config.audio.perceive_tokens).to(device_of(encoder))

    def draw(step: int) -> Windows:
        return windows(studio, np.random.default_rng([seed, 51, step]), batch)

    generator = torch.Generator().manual_seed(seed)

    def loss(drawn: Windows) -> Tensor:
        percepts = listen(encoder, drawn.pcm, generator)
        words, onsets = map(home, heads(percepts, drawn.whole))
        entropy = nn.functional.cross_entropy
        word = entropy(words, drawn.classes[: drawn.whole], label_smoothing=_SMOOTHING)
        found = word + entropy(onsets, drawn.classes[drawn.whole :])
        if anchor is None:
            return found
        before = _percepts(anchor, drawn.pcm)
        return found + _ANCHOR * home(nn.functional.mse_loss(percepts, before) / before.var())

    warm_up("ears", [*encoder.parameters(), *heads.parameters()], draw, loss, steps)
    with torch.no_grad():
        drawn = windows(studio, np.random.default_rng([seed, 52]), 256)
        words, onsets = map(home, heads(_percepts(encoder, drawn.pcm), drawn.whole))
        right = (words.argmax(dim=1) == drawn.classes[: drawn.whole]).float().mean()
        begun = (onsets.argmax(dim=1) == drawn.classes[drawn.whole :]).float().mean()
        return float(right), float(begun)
