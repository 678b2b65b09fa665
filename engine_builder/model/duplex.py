"""All parameters of one native-streaming model, and the embeddings and heads that the steps and the oracle share."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..config import TAU_FREQUENCIES, ModelConfig
from .backbone import Backbone
from .codecs import Codec, PublishedCodec, audio_codec, video_codec
from .codecs.patch import Patch
from .perception import AudioEncoder, LatentEncoder, VideoEncoder, audio_encoder, video_encoder


def tau_frequencies() -> Tensor:
    """Of the sinusoidal embedding of 1000 tau (Vaswani et al. 2017; the scale is customary for diffusion models)."""
    return 1000.0 * torch.exp(-math.log(10_000.0) * torch.arange(TAU_FREQUENCIES) / TAU_FREQUENCIES)


class TauModulation(nn.Module):
    """Turns the path time tau into shifts, scales and gates of every layer (adaLN-single: one shared network, one
    small table per layer). Noisy tokens only; clean tokens pass through the unmodulated layers."""

    frequency: Tensor

    def __init__(self, hidden_size: int, layers: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.embed = nn.Linear(2 * TAU_FREQUENCIES, hidden_size)
        self.project = nn.Linear(hidden_size, 6 * hidden_size)
        self.tables = nn.Parameter(torch.zeros(layers, 6, hidden_size))
        self.register_buffer("frequency", tau_frequencies(), persistent=False)

    def forward(self, tau: Tensor) -> list[Tensor]:
        """tau [B, ...] in [0, 1] -> per layer [B, ..., 6, d]."""
        angle = tau.unsqueeze(-1) * self.frequency
        hidden = nn.functional.silu(self.embed(torch.cat((torch.cos(angle), torch.sin(angle)), dim=-1)))
        shared = self.project(hidden).unflatten(-1, (6, self.hidden_size))
        return [shared + table for table in self.tables]


class MediaParts(NamedTuple):
    """Encoders and codecs, by the names that they have in a model; an encoder may use its stream's codec."""

    audio_encoder: AudioEncoder | LatentEncoder
    video_encoder: VideoEncoder | LatentEncoder
    audio_codec: Codec
    video_codec: Codec

    @classmethod
    def of(cls, config: ModelConfig) -> MediaParts:
        audio, video, d = audio_codec(config.audio), video_codec(config.video), config.backbone.hidden_size
        return cls(audio_encoder(config.audio, d, audio), video_encoder(config.video, d, video), audio, video)


class HiddenLayer(nn.Module):
    """Beside a linear head: what it adds is of more directions than the model has channels."""

    def __init__(self, d: int, channels: int, out: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(d, channels)
        self.down_proj = nn.Linear(channels, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.up_proj(x)))


class DuplexModel(nn.Module):
    """One Transformer with its codecs, encoders, projections and heads.

    The same backbone weights serve the thinker (clean tokens, no modulation) and the performer (noisy tokens,
    modulated by tau).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.kv_dtype = torch.float32  # of K and V, in the pool too; `engine_builder.targets.precision` changes it
        d = config.backbone.hidden_size
        self.model = Backbone(config.backbone, config.language.vocab_size)
        if not config.backbone.tied_head:
            self.lm_head = nn.Linear(d, config.language.vocab_size, bias=False)
        self.video_in = nn.Linear(config.video.latent_dim, d)
        self.audio_in = nn.Linear(config.audio.latent_dim, d)
        self.video_position = nn.Parameter(torch.zeros(config.video.tokens, d))
        self.audio_position = nn.Parameter(torch.zeros(config.audio.tokens, d))
        self.video_out = nn.Linear(d, config.video.latent_dim)
        self.audio_out = nn.Linear(d, config.audio.latent_dim)
        if config.audio.head_channels:
            self.audio_hidden = HiddenLayer(d, config.audio.head_channels, config.audio.latent_dim)
        self.modulation = TauModulation(d, config.backbone.layers)
        self.audio_encoder, self.video_encoder, self.audio_codec, self.video_codec = MediaParts.of(config)

    def embed_latents(self, z_video: Tensor, z_audio: Tensor) -> Tensor:
        """Latents of one unit, clean or noisy: [B, n_v, c_v], [B, n_a, c_a] -> [B, n_v + n_a, d]."""
        video = self.video_in(z_video) + self.video_position
        return torch.cat((video, self.audio_in(z_audio) + self.audio_position), dim=1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Language head on normalised hidden states [..., d] -> [..., V]."""
        if self.config.backbone.tied_head:
            table = self.model.embed_tokens.weight
            return (hidden.to(table.dtype) @ table.T).float()
        return self.lm_head(hidden)

    def clean_estimate(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Estimate of z_0 from hidden states [B, n_v + n_a, d] -> [B, n_v, c_v], [B, n_a, c_a]."""
        n = self.config.video.tokens
        audio = self.audio_out(hidden[:, n:])
        if self.config.audio.head_channels:
            audio = audio + self.audio_hidden(hidden[:, n:])
        return self.video_out(hidden[:, :n]), audio


def velocity(noisy: Tensor, clean: Tensor, tau: Tensor) -> Tensor:
    """Velocity eps - z_0 of the straight path z_tau = (1 - tau) z_0 + tau eps, given an estimate of z_0.

    Since z_tau - z_0 = tau (eps - z_0), it is (z_tau - z_0) / tau. noisy, clean [B, n, c]; tau [B] in (0, 1]
    (the path is Wan-Streamer's and Lipman et al. 2023; the network estimates z_0, which trains better on small
    data, and an Euler step to tau = 0 lands exactly on it).
    """
    return (noisy - clean) / tau.view(-1, 1, 1)


INIT_STD = 0.02  # like Qwen


def residual_scale(config: ModelConfig) -> float:
    """Of the matrices that write into the residual stream, at first: by depth."""
    return 1.0 / math.sqrt(2 * config.backbone.layers)


def init_weights(model: DuplexModel, seed: int) -> None:
    """Seeded random weights: normal(0, INIT_STD) for matrices, residual outputs scaled by depth."""
    generator = torch.Generator().manual_seed(seed)
    scale = residual_scale(model.config)
    codecs = [codec for codec in (model.audio_codec, model.video_codec) if isinstance(codec, PublishedCodec)]
    drawn = {id(parameter) for codec in codecs for parameter in codec.parameters()}
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if name.startswith(("audio_codec.", "video_codec.mean", "video_codec.basis", "video_codec.latent_scale")):
                continue  # transforms that work untrained
            if id(parameter) in drawn or parameter.is_meta:
                continue
            if name.endswith("bias"):
                parameter.zero_()
            elif "norm" not in name:
                fan_in = parameter[0].numel() if "conv" in name or "encoder" in name else 0
                std = fan_in**-0.5 if fan_in else INIT_STD
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    std *= scale
                parameter.normal_(0.0, std, generator=generator)
    for codec in codecs:
        codec.draw(generator)
    if isinstance(model.video_codec, Patch):
        with torch.no_grad():
            model.video_codec.refine_out.weight.mul_(0.02)
