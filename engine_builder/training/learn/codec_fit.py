"""Fits the linear codecs to the agent: principal components of its voices and of its faces.

Latents are scaled by the square root of their standard deviation, so that strong components keep some of their weight
in the flow-matching loss (full whitening would spend the model on details that nobody hears or sees).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from engine_builder.config import FRAMES_PER_UNIT
from engine_builder.model.codecs.mdct import Mdct
from engine_builder.model.codecs.patch import Patch
from engine_builder.model.duplex import DuplexModel
from engine_builder.presets import preset

from ..world.conversation import Studio
from ..world.speech.agent_voice import agent_voice
from ..world.words import PEOPLE

_FLOOR = 0.03  # components weaker than this share of the strongest keep their small variance
_FIRST_SEED = 900_000_000  # conversations for codec fitting; training and tests use other numbers


def fit_codecs(model: DuplexModel, studio: Studio, conversations: int, units: int = 40) -> dict[str, float]:
    """Sets the codec parameters of `model` from agent audio and frames of `conversations` conversations."""
    audio, video = _check(model)
    pcm, frames = _material(studio, conversations, units, 0)
    with torch.no_grad():
        # Rare words count as much as frequent ones: the whole vocabulary, as often as the conversations are long.
        words = _vocabulary()
        words = words.repeat(max(1, pcm.numel() // words.numel()))
        size = words.numel() // pcm.shape[1] * pcm.shape[1]
        _fit_audio(audio, torch.cat((pcm, words[:size].view(-1, pcm.shape[1]))))
        _fit_video(video, frames)
        return measure_codecs(model, studio)


def with_finer_codecs(model: DuplexModel, studio: Studio, conversations: int) -> DuplexModel:
    """`model` with as many more latents as the preset `tiny` has, fitted to what its codecs lose of the agent, and with
    its head's hidden layer.

    Old latents keep their meaning, and new ones are neither read nor moved from their mean, so that the model is the
    same function until it learns (as `ears.with_longer_ears`). A model that has as many, or other codecs, is returned.
    """
    old, usual = model.config, preset("tiny")
    if (old.audio.codec, old.video.codec) != (usual.audio.codec, usual.video.codec):
        return model
    audio = replace(
        old.audio,
        latent_dim=max(old.audio.latent_dim, usual.audio.latent_dim),
        head_channels=max(old.audio.head_channels, usual.audio.head_channels),
    )
    video = replace(old.video, latent_dim=max(old.video.latent_dim, usual.video.latent_dim))
    if (audio, video) == (old.audio, old.video):
        return model
    grown = DuplexModel(replace(old, audio=audio, video=video))
    audio_codec, video_codec = _check(grown)
    theirs, mine = model.state_dict(), grown.state_dict()
    for name, tensor in mine.items():
        tensor.zero_()
        if name not in theirs:
            if name == "audio_hidden.up_proj.weight":  # what it feeds begins at zero
                tensor.normal_(0, tensor.shape[1] ** -0.5, generator=torch.Generator().manual_seed(1))
            continue
        tensor[tuple(slice(size) for size in theirs[name].shape)] = theirs[name]
    grown.load_state_dict(mine)
    with torch.no_grad():
        if audio.latent_dim > old.audio.latent_dim:
            _refine_audio(audio_codec, old.audio.latent_dim, _vocabulary().unsqueeze(0))
        if video.latent_dim > old.video.latent_dim:
            _refine_video(video_codec, old.video.latent_dim, _material(studio, conversations, 40, 0)[1])
    return grown


def measure_codecs(model: DuplexModel, studio: Studio, conversations: int = 12, units: int = 40) -> dict[str, float]:
    """Signal to noise ratio of the voice, peak signal to noise ratio of the face, on conversations not fitted to."""
    pcm, frames = _material(studio, conversations, units, 1)
    audio, video = model.audio_codec, model.video_codec
    with torch.no_grad():
        latents, _ = audio.encode(pcm, None)
        heard, _ = audio.decode(latents, None)
        hop = model.config.audio.hop
        error = heard[:, hop:] - pcm[:, :-hop]
        snr = 10 * torch.log10(pcm.square().sum() / error.square().sum())
        seen, _ = video.decode(video.encode(frames, None)[0], None)
        mse = (seen - frames.float()).square().mean()
    psnr = 10 * torch.log10(255.0**2 / mse)
    return {"audio_snr_db": round(float(snr), 2), "video_psnr_db": round(float(psnr), 2)}


def latent_spread(model: DuplexModel, studio: Studio, conversations: int, units: int = 40) -> tuple[Tensor, Tensor]:
    """Standard deviation of the latents: video [n_v, c_v], audio [1, c_a]."""
    pcm, frames = _material(studio, conversations, units, 2)
    with torch.no_grad():
        audio, _ = model.audio_codec.encode(pcm, None)
        video, _ = model.video_codec.encode(frames, None)
    v = model.config.video
    return video.view(-1, v.tokens, v.latent_dim).std(0), audio.flatten(0, 1).std(0, keepdim=True)


def _check(model: DuplexModel) -> tuple[Mdct, Patch]:
    audio, video = model.audio_codec, model.video_codec
    if not isinstance(audio, Mdct) or not isinstance(video, Patch):
        c = model.config
        raise ValueError(f"codec: only mdct and patch are fitted, got {c.audio.codec} and {c.video.codec}")
    return audio, video


def _vocabulary() -> Tensor:
    """All words of all voices one after another, [samples]."""
    return torch.cat([torch.from_numpy(agent_voice(person).vocabulary()).reshape(-1) for person in PEOPLE])


def _material(studio: Studio, count: int, units: int, part: int) -> tuple[Tensor, Tensor]:
    """pcm [count, units * N], frames uint8 [count, 4 units, H, W, 3] of the agent."""
    pcm, frames = [], []
    for i in range(count):
        conversation = studio.conversation(_FIRST_SEED + part * 100_000 + i, units, first_unit=1)
        pcm.append(torch.from_numpy(conversation.agent_pcm[1:].reshape(-1)))
        frames.append(torch.from_numpy(conversation.face[1:].reshape(-1, *conversation.face.shape[2:])))
    return torch.stack(pcm), torch.stack(frames)


def _scale(deviation: Tensor) -> Tensor:
    """Divisor that leaves latents with standard deviation sqrt(deviation), normalised to a mean square of 1."""
    left = deviation.clamp(min=_FLOOR * float(deviation.max())).sqrt()
    return left * left.square().mean().sqrt()


def _fit_audio(codec: Mdct, pcm: Tensor) -> None:
    coefficients, _ = codec.coefficients(pcm, pcm.new_zeros(len(pcm), codec.encoder_size))
    loudness = coefficients.square().mean(dim=(0, 1)).sqrt()
    codec.bin_scale.copy_(loudness.clamp(min=0.02 * float(loudness.max())).sqrt())
    blocks = (coefficients / codec.bin_scale).reshape(-1, codec.mean.shape[0])
    codec.mean.zero_()  # silence is the zero latent
    values, vectors = torch.linalg.eigh((blocks.T.double() @ blocks.double()) / len(blocks))
    keep = codec.basis.shape[0]
    codec.basis.copy_(vectors.flip(1)[:, :keep].T.float())
    codec.latent_scale.copy_(_scale(values.flip(0)[:keep].clamp(min=0).sqrt().float()))


def _refine_audio(codec: Mdct, kept: int, pcm: Tensor) -> None:
    """Rows of the basis from `kept` on: principal components of what those before them lose of pcm [1, samples]."""
    coefficients, _ = codec.coefficients(pcm, pcm.new_zeros(1, codec.encoder_size))
    blocks = (coefficients / codec.bin_scale).reshape(-1, codec.mean.shape[0]) - codec.mean
    lost = blocks - blocks @ codec.basis.T @ codec.basis
    _, _, directions = torch.linalg.svd(lost.double(), full_matrices=False)
    codec.basis[kept:] = directions[: len(codec.basis) - kept].float()
    deviation = (blocks @ codec.basis.T).std(0)
    codec.latent_scale[kept:] = _scale(deviation)[kept:]


def _refine_video(codec: Patch, kept: int, frames: Tensor) -> None:
    """The same of frames [count, 4 units, H, W, 3]."""
    centred = (_patches(codec, frames) - codec.mean).reshape(-1, codec.config.patch_dim)
    lost = centred - centred @ codec.basis.T @ codec.basis
    values, vectors = torch.linalg.eigh((lost @ lost.T).double())
    keep = torch.arange(len(values) - 1, len(values) - 1 - (len(codec.basis) - kept), -1)
    directions = vectors[:, keep].T.float() @ lost
    codec.basis[kept:] = directions / directions.norm(dim=1, keepdim=True)
    latents = centred.view(-1, codec.config.tokens, codec.config.patch_dim) @ codec.basis.T
    codec.latent_scale[:, kept:] = _scale(latents.std(0))[:, kept:]


def _fit_video(codec: Patch, frames: Tensor) -> None:
    c, x = codec.config, _patches(codec, frames)
    codec.mean.copy_(x.mean(0))
    centred = (x - codec.mean).reshape(-1, c.patch_dim)
    values, vectors = torch.linalg.eigh((centred @ centred.T).double())  # the small side of the Gram matrix
    keep = torch.arange(len(values) - 1, len(values) - 1 - c.latent_dim, -1)
    directions = vectors[:, keep].T.float() @ centred
    codec.basis.copy_(directions / directions.norm(dim=1, keepdim=True))
    latents = (x - codec.mean) @ codec.basis.T
    codec.latent_scale.copy_(_scale(latents.std(0)))


def _patches(codec: Patch, frames: Tensor) -> Tensor:
    """800 units of frames [count, 4 units, H, W, 3], drawn, in [-1, 1]: [800, tokens, patch_dim]."""
    c = codec.config
    rows, columns = c.grid
    picture = frames.view(-1, FRAMES_PER_UNIT, rows, c.stride, columns, c.stride, 3)
    patches = picture.permute(0, 2, 4, 1, 3, 5, 6).reshape(-1, c.tokens, c.patch_dim)
    chosen = patches[torch.randperm(len(patches), generator=torch.Generator().manual_seed(1))[:800]]
    return chosen.float() / 127.5 - 1.0
