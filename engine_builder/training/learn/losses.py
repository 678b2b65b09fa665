"""The joint objective: cross-entropy on slots and flow matching on latents, from one forward pass."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from engine_builder.config import ModelConfig
from engine_builder.tokenizer import note_ids, word_ids

from ..world.conversation import NO_WORD
from ..world.words import COLOURS, LANGUAGES, SOCIAL, Meaning, answer
from .batches import Batch
from .devices import device_of, home
from .masks import listen
from .packed_pass import PackedPass, PackedUnits

_FLOAT32 = ("modulation", "codec", "encoder")  # parts that stay in float32 when the backbone runs in bfloat16
# Weights of words in the cross-entropy (`<eou>`: 1): rare answers count more, words that follow of themselves less.
WORD_WEIGHT, FUNCTION_WEIGHT, SOCIAL_WEIGHT, COLOUR_WEIGHT, NOTE_WEIGHT = 6.0, 2.0, 6.0, 12.0, 5.0
LOUDNESS_WEIGHT = 0.01  # holds the percepts' scale: a layer norm follows, so nothing else does
VIDEO_WEIGHT = 0.5
SPEECH_WEIGHT, SILENCE_WEIGHT = 2.5, 0.7
# Of the first picture of a session: all later ones show who it was, and only this one must heed prompt and references.
# Likewise of the first sound after silence: what follows goes on in the same voice.
BEGIN_WEIGHT, ONSET_WEIGHT = 12.0, 4.0
TAU_FLOOR = 0.3  # velocity weighting 1 / max(tau, floor)^2 of the error of z_0
TAU_SHIFT = 0.8  # tau = sigmoid(N(TAU_SHIFT, 1))
PURE_NOISE = 0.15  # share of units at tau = 1, where every solver starts
BEGIN_NOISE = 0.6  # the same of first pictures and sounds: with less noise they say themselves whose they are
NOISY_CONTEXT, CONTEXT_SIGMA = 0.7, 0.5


def word_weights(config: ModelConfig) -> Tensor:
    """Weight of every token as the target of a text slot, [V]."""
    ids, weights = word_ids(config.language), torch.full((config.language.vocab_size,), WORD_WEIGHT)
    weights[config.language.eou_id] = 1.0
    weights[[*note_ids(config.language).values()]] = NOTE_WEIGHT
    for language in LANGUAGES:
        for kind in SOCIAL[language]:
            words = answer(Meaning(kind), language)
            weights[ids[words[0]]] = SOCIAL_WEIGHT
            weights[[ids[word] for word in words[1:]]] = FUNCTION_WEIGHT
        weights[[ids[word] for word in COLOURS[language]]] = COLOUR_WEIGHT
        weights[[ids[word] for word in answer(Meaning("digit", 0), language)[1:-1]]] = FUNCTION_WEIGHT
    return weights


@dataclass(frozen=True)
class Spread:
    """Standard deviations of the latents, [n_v, c_v] and [1, c_a]: the unit of context noise."""

    video: Tensor
    audio: Tensor


@dataclass(frozen=True)
class Losses:
    """Scalars. `total` is what is minimised; `text` is of the agent's words, `heard` of the user's, `notes` of the
    agent's to itself; `audio` and `video` are unweighted errors of z_0."""

    total: Tensor
    state: Tensor
    text: Tensor
    heard: Tensor
    notes: Tensor
    audio: Tensor
    video: Tensor


def perceive(step: PackedPass, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """e_video [B, K, n_ev, d], e_audio [B, K, n_ea, d] in float32, from silent encoder states; the sound through
    masks; where the model is."""
    m = step.model
    size, units = batch.text.shape
    e_audio = listen(m.audio_encoder, batch.user_pcm, generator)
    camera = batch.camera.to(device_of(m))
    e_video, _ = m.video_encoder(camera, camera.new_zeros(size, m.video_encoder.state_size, dtype=torch.float32))
    return e_video.view(size, units, -1, e_video.shape[-1]), e_audio.view(size, units, -1, e_audio.shape[-1])


def run_pass(
    step: PackedPass, units: PackedUnits, e_video: Tensor, e_audio: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The packed pass with backbone, projections and heads in `dtype`; outputs float32, on the CPU."""
    weights = {
        name: parameter if any(part in name for part in _FLOAT32) else parameter.to(dtype)
        for name, parameter in step.named_parameters()
    }
    outputs = functional_call(step, weights, (units, e_video, e_audio))
    logits, video, audio = (home(output.float()) for output in outputs)
    return logits, video, audio


def draw_units(batch: Batch, spread: Spread, generator: torch.Generator) -> PackedUnits:
    """Noisy targets at random path times over a context that is noisy in most stretches."""
    size, count = batch.text.shape

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    tau = torch.sigmoid(TAU_SHIFT + torch.randn(size, count, generator=generator))
    pure = torch.where(_begins(batch) | _onsets(batch), BEGIN_NOISE, PURE_NOISE)
    tau = torch.where(torch.rand(size, count, generator=generator) < pure, 1.0, tau)
    sigma = CONTEXT_SIGMA * torch.rand(size, 1, 1, 1, generator=generator)
    sigma = sigma * (torch.rand(size, 1, 1, 1, generator=generator) < NOISY_CONTEXT)
    t = tau[..., None, None]
    return PackedUnits(
        prompt=batch.prompt,
        own_video=batch.own_video,
        own_audio=batch.own_audio,
        own_units=batch.own_units,
        first_unit=batch.first_unit,
        z_video=batch.z_video + sigma * spread.video * normal(batch.z_video),
        z_audio=batch.z_audio + sigma * spread.audio * normal(batch.z_audio),
        text=batch.text,
        slots=batch.slots,
        x_video=(1 - t) * batch.z_video[:, 1:] + t * normal(batch.z_video[:, 1:]),
        x_audio=(1 - t) * batch.z_audio[:, 1:] + t * normal(batch.z_audio[:, 1:]),
        tau=tau,
        reach=batch.reach,
        cut=batch.cut,
        gap=batch.gap,
    )


def roll_out(
    step: PackedPass,
    batch: Batch,
    units: PackedUnits,
    e_video: Tensor,
    e_audio: Tensor,
    dtype: torch.dtype,
    chosen: Tensor,
    generator: torch.Generator,
) -> PackedUnits:
    """Roll-out: in stretches where `chosen` [B] the context becomes what the model itself would have made of it, and
    so does the sound in the noisy targets: a solver goes on from estimates, not from the truth, which says whose voice
    it is.

    One evaluation from pure noise for all units at once; units thus see their predecessors' mistakes, one unit deep.
    With more evaluations the model would choose what is random, and its choice contradict the targets that follow.
    """
    with torch.no_grad():
        noise = replace(
            units,
            x_video=torch.randn(units.x_video.shape, generator=generator),
            x_audio=torch.randn(units.x_audio.shape, generator=generator),
            tau=torch.ones_like(units.tau),
        )
        _, video, audio = run_pass(step, noise, e_video, e_audio, dtype)
        mine = chosen[:, None, None, None]
        x_audio = units.x_audio + (1 - units.tau[..., None, None]) * (audio - batch.z_audio[:, 1:])
        return replace(
            units,
            x_audio=torch.where(mine, x_audio, units.x_audio),
            z_video=torch.where(mine, torch.cat((units.z_video[:, :1], video), dim=1), units.z_video),
            z_audio=torch.where(mine, torch.cat((units.z_audio[:, :1], audio), dim=1), units.z_audio),
        )


def joint_loss(
    step: PackedPass, batch: Batch, units: PackedUnits, e_video: Tensor, e_audio: Tensor, dtype: torch.dtype
) -> Losses:
    """All losses of one batch; differentiable."""
    language = step.model.config.language
    logits, video, audio = run_pass(step, units, e_video, e_audio, dtype)
    entropy = nn.functional.cross_entropy
    state = entropy(logits[:, :, 0].flatten(0, 1), (language.first_state_id + batch.state).flatten())
    # Every slot says the next token, and the last of a unit its end: `<eou>`.
    emitted = batch.slots[:, :, 1:] != language.pad_id
    targets = nn.functional.pad(
        torch.where(emitted, batch.slots[:, :, 1:], language.eou_id), (0, 1), value=language.eou_id
    )
    asked = nn.functional.pad(emitted, (1, 0), value=True)
    errors = entropy(logits[:, :, 1:].flatten(0, 2), targets.flatten(), reduction="none").view_as(targets)
    # What a stretch from the middle of a session begins with comes from before it: it is read, and not asked for.
    noted = batch.notes[:, :, 0] != NO_WORD
    given = noted & (batch.first_unit > 0)[:, None] & (torch.arange(noted.shape[1]) == 0)
    asked = asked & ~given[:, :, None]
    text = (errors * asked * word_weights(step.model.config)[targets]).sum(dim=2).mean()
    heard, speaks = batch.heard != NO_WORD, batch.word != NO_WORD
    told = torch.where(heard, errors[:, :, 1], errors[:, :, 0])
    loudness = sum(torch.log(home(e.square().mean())).square() for e in (e_video, e_audio)) * LOUDNESS_WEIGHT

    weight = units.tau.clamp(min=TAU_FLOOR) ** -2
    loud = torch.where(batch.state == 1, SPEECH_WEIGHT, SILENCE_WEIGHT)
    loud = torch.where(_onsets(batch), ONSET_WEIGHT * loud, loud)
    video_error = (video - batch.z_video[:, 1:]).square().mean(dim=(2, 3))
    audio_error = (audio - batch.z_audio[:, 1:]).square().mean(dim=(2, 3))
    shown = weight * torch.where(_begins(batch), BEGIN_WEIGHT, 1.0)
    flow = (audio_error * weight * loud).mean() + VIDEO_WEIGHT * (video_error * shown).mean()
    return Losses(
        total=flow + state + text + loudness,
        state=state.detach(),
        text=told.detach()[speaks].mean(),
        heard=errors.detach()[:, :, 0][heard].mean(),
        notes=errors.detach()[:, :, 0][noted & ~given].mean(),
        audio=audio_error.detach().mean(),
        video=video_error.detach().mean(),
    )


def _begins(batch: Batch) -> Tensor:
    """bool [B, K]: the first units of sessions."""
    return (batch.first_unit == 0)[:, None] & (torch.arange(batch.state.shape[1]) == 0)


def _onsets(batch: Batch) -> Tensor:
    """bool [B, K]: units in which the agent begins to speak."""
    silent = nn.functional.pad(batch.state[:, :-1] == 0, (1, 0), value=False)
    return silent & (batch.state == 1)
