"""Who else makes of media and latents what our codecs make, from the same weights by name.

`mimi-vae`: the pocket-tts package; `wan21`: diffusers; `taehv`: a plain reading of the published structure, one frame
after the other, one block after the other. An oracle takes a whole stream from its published beginning.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, relu

from engine_builder.model.codecs import PublishedCodec
from engine_builder.model.codecs.mimi_vae import CHANNELS as MIMI_CHANNELS
from engine_builder.model.codecs.wan_latents import from_tokens, to_tokens


class Oracle(Protocol):
    name: str

    def encode(self, media: Tensor) -> Tensor:
        """Media as our codec takes them -> our latents."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Our latents -> pcm, or pixels in [0, 1]."""
        ...


def oracle_of(made: PublishedCodec) -> Oracle:
    """ModuleNotFoundError where its package is missing."""
    return {"mimi-vae": PocketTts, "wan21": Diffusers, "taehv": Plain}[made.config.codec](made)


def by_name(made: PublishedCodec) -> dict[str, Tensor]:
    return {name: t for name, t in made.state_dict().items() if name not in ("latent_mean", "latent_scale")}


class PocketTts:
    """The structure of pocket-tts' `english.yaml` at the width of our codec."""

    def __init__(self, made: PublishedCodec) -> None:
        from pocket_tts.models.mimi import build_mimi
        from pocket_tts.modules.stateful_module import StatefulModule
        from pocket_tts.utils.config import MimiConfig

        self.name, self._made = f"pocket-tts {version('pocket-tts')}", made
        channels = made.config.codec_channels or MIMI_CHANNELS
        width = 8 * channels
        seanet = {"dimension": width, "channels": 1, "n_filters": channels, "n_residual_layers": 1}
        seanet |= {"ratios": [6, 5, 4], "kernel_size": 7, "residual_kernel_size": 3, "last_kernel_size": 3}
        seanet |= {"dilation_base": 2, "pad_mode": "constant", "compress": 2}
        transformer = {"d_model": width, "num_heads": 8, "num_layers": 2, "layer_scale": 0.01, "context": 250}
        transformer |= {"dim_feedforward": 4 * width, "input_dimension": width, "output_dimensions": [width]}
        config = {"dtype": "float32", "sample_rate": 24000, "inner_dim": 32, "outer_dim": width, "channels": 1}
        config |= {"frame_rate": 12.5, "seanet": seanet, "transformer": transformer}
        config |= {"quantizer": {"dimension": 32, "output_dimension": width}}
        self._mimi = build_mimi(MimiConfig(**config)).eval()
        self._mimi.load_state_dict(by_name(made))  # strict: all names
        for name, module in self._mimi.named_modules():
            if isinstance(module, StatefulModule):
                module._module_absolute_name = name

    def encode(self, media: Tensor) -> Tensor:
        return (self._mimi.encode_to_latent(media[:, None]) - self._made.latent_mean) / self._made.latent_scale

    def decode(self, latents: Tensor) -> Tensor:
        from pocket_tts.modules.stateful_module import init_states

        states = init_states(self._mimi, batch_size=1, sequence_length=16 * latents.shape[1])
        own = latents * self._made.latent_scale + self._made.latent_mean
        return self._mimi.decode_from_latent(own, states)[:, 0].clamp(-1, 1)


class Diffusers:
    """Its AutoencoderKLWan."""

    def __init__(self, made: PublishedCodec) -> None:
        from diffusers import AutoencoderKLWan

        self.name, self._made = f"diffusers {version('diffusers')}", made
        self._wan = AutoencoderKLWan(base_dim=made.encoder.conv_in.out_channels).eval()
        self._wan.load_state_dict(by_name(made))  # strict: all names
        self._mean, self._scale = made.latent_mean.view(-1, 1, 1), made.latent_scale.view(-1, 1, 1)

    def encode(self, media: Tensor) -> Tensor:
        clip = media.permute(0, 4, 1, 2, 3) / 127.5 - 1.0
        latents = self._wan.encode(clip).latent_dist.mode().transpose(1, 2)
        return to_tokens((latents - self._mean) / self._scale, self._made.config)

    def decode(self, latents: Tensor) -> Tensor:
        own = from_tokens(latents, self._made.config) * self._scale + self._mean
        return (self._wan.decode(own.transpose(1, 2)).sample.permute(0, 2, 3, 4, 1) + 1) / 2


# The published sequences of TAEHV; pool and grow name their number of frames.
STAGE = ("memory", "memory", "memory")
ENCODER = ("conv", "relu", "pool2", "conv2", *STAGE, "pool2", "conv2", *STAGE, "pool1", "conv2", *STAGE, "conv")
DECODER = ("clamp", "conv", "relu", *STAGE, "up", "grow1", "conv", *STAGE, "up", "grow2", "conv", *STAGE, "up")
DECODER += ("grow2", "conv", "relu", "conv")


class Plain:
    name = "a plain reading"

    def __init__(self, made: PublishedCodec) -> None:
        self._made, self._weights = made, by_name(made)
        self._mean, self._scale = made.latent_mean.view(-1, 1, 1), made.latent_scale.view(-1, 1, 1)

    def encode(self, media: Tensor) -> Tensor:
        blocks = Blocks(ENCODER, self._weights, "encoder")
        for picture in media[0]:
            blocks.push(picture.permute(2, 0, 1) / 255.0)
        return to_tokens(((torch.stack(blocks.out) - self._mean) / self._scale)[None], self._made.config)

    def decode(self, latents: Tensor) -> Tensor:
        blocks = Blocks(DECODER, self._weights, "decoder")
        for latent in from_tokens(latents, self._made.config)[0]:
            blocks.push(latent * self._scale + self._mean)
        return torch.stack(blocks.out).permute(0, 2, 3, 1).clamp(0, 1)[None]


class Blocks:
    """Pushes frames [C, h, w] through a sequence of blocks, by the tensors' published names."""

    def __init__(self, blocks: tuple[str, ...], weights: dict[str, Tensor], prefix: str) -> None:
        self.blocks, self.weights, self.prefix = blocks, weights, prefix
        self.memory: dict[int, Tensor] = {}
        self.pooled: dict[int, list[Tensor]] = {}
        self.out: list[Tensor] = []

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.weights[f"{self.prefix}.{name}.weight"]
        bias = self.weights.get(f"{self.prefix}.{name}.bias")
        return conv2d(x[None], weight, bias, stride, padding=weight.shape[-1] // 2)[0]

    def push(self, x: Tensor, at: int = 0) -> None:
        if at == len(self.blocks):
            self.out.append(x)
            return
        kind = self.blocks[at]
        frames = [x]
        if kind in ("conv", "conv2"):
            frames = [self.conv(str(at), x, 2 if kind == "conv2" else 1)]
        elif kind == "relu":
            frames = [relu(x)]
        elif kind == "clamp":
            frames = [torch.tanh(x / 3) * 3]
        elif kind == "up":
            frames = [interpolate(x[None], scale_factor=2)[0]]
        elif kind == "memory":
            y = torch.cat((x, self.memory.get(at, torch.zeros_like(x))))
            for layer in ("conv.0", "conv.2", "conv.4"):
                y = self.conv(f"{at}.{layer}", y)
                y = y if layer == "conv.4" else relu(y)
            self.memory[at] = x
            frames = [relu(y + x)]
        elif kind.startswith("pool"):
            self.pooled.setdefault(at, []).append(x)
            if len(self.pooled[at]) < int(kind[-1]):
                return
            frames = [self.conv(f"{at}.conv", torch.cat(self.pooled.pop(at)))]
        elif kind.startswith("grow"):
            frames = list(self.conv(f"{at}.conv", x).chunk(int(kind[-1])))
        for frame in frames:
            self.push(frame, at + 1)
