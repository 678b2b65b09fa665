"""`wan21`: the causal 3-D VAE of Wan 2.1 (Apache-2.0), under the tensor names of diffusers' AutoencoderKLWan.

Every 3-D convolution sees the two frames before (`feat_cache` there, its state here). The published stream begins
with one frame for the first latent; a session starts behind that, and then 4 frames are one latent for ever.
Shapes: x [B, C, T, h, w].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...config import WAN_CHANNELS, VideoConfig
from .codec import PublishedCodec, Tape
from .wan_latents import from_tokens, to_tokens

CHANNELS = 96  # published width
WIDTHS = (1, 2, 4, 4)  # of the four sizes, in CHANNELS
RESIDUALS = 2  # blocks at each size of the encoder; the decoder has one more
TIME_STRIDES = (False, True, True)  # whether the step to the next size also halves time
# Mean and standard deviation of the latents, as published in the model's config.
LATENT_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508)
LATENT_MEAN += (0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
LATENT_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743)
LATENT_STD += (3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)


class CausalConv3d(nn.Conv3d):
    """A convolution that sees `kernel - 1` frames before; they are its state."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int, int] = (3, 3, 3)) -> None:
        super().__init__(inputs, outputs, kernel, padding=(0, kernel[1] // 2, kernel[2] // 2))

    def stream(self, x: Tensor, tape: Tape) -> Tensor:
        past = int(self.kernel_size[0]) - 1
        channels, height, width = x.shape[1], x.shape[3], x.shape[4]
        x = torch.cat((tape.take(channels, past, height, width), x), dim=2)
        tape.put(x[:, :, -past:])
        return self(x)


class ChannelNorm(nn.Module):
    """x / rms(x) * gamma over channels. `axes`: how many follow the channels in the published tensor."""

    def __init__(self, channels: int, axes: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * axes))

    def forward(self, x: Tensor) -> Tensor:
        norm = x.square().sum(dim=1, keepdim=True).sqrt().clamp(min=1e-12)
        return x / norm * x.shape[1] ** 0.5 * self.gamma


class Residual(nn.Module):
    """Two convolutions of normalised input, beside the input itself."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(inputs), ChannelNorm(outputs)
        self.conv1, self.conv2 = CausalConv3d(inputs, outputs), CausalConv3d(outputs, outputs)
        self.conv_shortcut = nn.Conv3d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        y = self.conv1.stream(nn.functional.silu(self.norm1(x)), tape)
        return self.conv2.stream(nn.functional.silu(self.norm2(y)), tape) + self.conv_shortcut(x)


class PictureAttention(nn.Module):
    """One head over the places of each picture."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels, axes=2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        def attend(picture: Tensor) -> Tensor:
            q, k, v = (t.flatten(2).transpose(1, 2).unsqueeze(1) for t in self.to_qkv(self.norm(picture)).chunk(3, 1))
            y = nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1)
            return self.proj(y.transpose(1, 2).reshape(picture.shape))

        return x + each_picture(attend, x)


class Down(nn.Module):
    """Half the height and width, and half the frames if `time`. State: the frame before."""

    def __init__(self, channels: int, time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))
        self.time_conv = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if time else None

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        x = each_picture(self.resample, x)
        if self.time_conv is None:
            return x
        past = tape.take(x.shape[1], 1, x.shape[3], x.shape[4])
        tape.put(x[:, :, -1:])
        if not tape.fresh:
            return self.time_conv(torch.cat((past, x), dim=2))
        first = x[:, :, :1]  # stays a frame of its own
        return first if x.shape[2] == 1 else torch.cat((first, self.time_conv(x)), dim=2)


class Up(nn.Module):
    """Twice the height and width, half the channels, and twice the frames if `time`."""

    def __init__(self, channels: int, time: bool) -> None:
        super().__init__()
        # Index 0 enlarges and has no weights.
        self.resample = nn.Sequential(nn.Identity(), nn.Conv2d(channels, channels // 2, 3, padding=1))
        self.time_conv = CausalConv3d(channels, 2 * channels, (3, 1, 1)) if time else None

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        if self.time_conv is not None:
            if tape.fresh:  # the first frame stays one, and later frames do not see it
                x = torch.cat((x[:, :, :1], self._grow(self.time_conv, x[:, :, 1:], tape)), dim=2)
            else:
                x = self._grow(self.time_conv, x, tape)
        return each_picture(
            lambda picture: self.resample(nn.functional.interpolate(picture, scale_factor=2.0, mode="nearest")), x
        )

    @staticmethod
    def _grow(conv: CausalConv3d, x: Tensor, tape: Tape) -> Tensor:
        channels, frames, height, width = x.shape[1:]
        if frames == 0:
            tape.put(tape.take(channels, 2, height, width))
            return x
        pairs = conv.stream(x, tape).reshape(-1, 2, channels, frames, height, width)
        return pairs.permute(0, 2, 3, 1, 4, 5).reshape(-1, channels, 2 * frames, height, width)


def each_picture(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A layer of pictures [N, C, h, w] over x [B, C, T, h, w]."""
    pictures = x.transpose(1, 2)
    y = layer(pictures.flatten(0, 1))
    return y.reshape(-1, pictures.shape[1], *y.shape[1:]).transpose(1, 2)


class Middle(nn.Module):
    """At the smallest size, of both halves: residual block, attention, residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList((Residual(channels, channels), Residual(channels, channels)))
        self.attentions = nn.ModuleList((PictureAttention(channels),))

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x, tape), tape), tape)


class UpBlock(nn.Module):
    """One size of the decoder: residual blocks, then the step to the next size."""

    def __init__(self, inputs: int, outputs: int, up: Up | None) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * RESIDUALS
        self.resnets = nn.ModuleList(Residual(width, outputs) for width in widths)
        self.upsamplers = nn.ModuleList([up] if up else [])

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x, tape)
        return x


class Tail(nn.Module):
    """Norm and convolution that end both halves; they lie flat beside the blocks in the published names."""

    norm_out: ChannelNorm
    conv_out: CausalConv3d

    def tail(self, x: Tensor, tape: Tape) -> Tensor:
        return self.conv_out.stream(nn.functional.silu(self.norm_out(x)), tape)


class Encoder(Tail):
    """Pictures in [-1, 1] to mean and log variance; its blocks lie in one flat list, as published."""

    def __init__(self, base: int) -> None:
        super().__init__()
        self.conv_in = CausalConv3d(3, base)
        blocks: list[nn.Module] = []
        channels = base
        for size, width in enumerate(WIDTHS):
            for _ in range(RESIDUALS):
                blocks.append(Residual(channels, width * base))
                channels = width * base
            if size < len(TIME_STRIDES):
                blocks.append(Down(channels, TIME_STRIDES[size]))
        self.down_blocks = nn.ModuleList(blocks)
        self.mid_block = Middle(channels)
        self.norm_out = ChannelNorm(channels)
        self.conv_out = CausalConv3d(channels, 2 * WAN_CHANNELS)

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        x = self.conv_in.stream(x, tape)
        for block in self.down_blocks:
            x = block(x, tape)
        return self.tail(self.mid_block(x, tape), tape)


class Decoder(Tail):
    """Latents to pictures around [-1, 1]."""

    def __init__(self, base: int) -> None:
        super().__init__()
        channels = WIDTHS[-1] * base
        self.conv_in = CausalConv3d(WAN_CHANNELS, channels)
        self.mid_block = Middle(channels)
        blocks = []
        for size, width in enumerate(reversed(WIDTHS)):
            up = Up(width * base, TIME_STRIDES[-1 - size]) if size < len(TIME_STRIDES) else None
            blocks.append(UpBlock(channels, width * base, up))
            channels = width * base // 2
        self.up_blocks = nn.ModuleList(blocks)
        self.norm_out = ChannelNorm(base)
        self.conv_out = CausalConv3d(base, 3)

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        x = self.mid_block(self.conv_in.stream(x, tape), tape)
        for block in self.up_blocks:
            x = block(x, tape)
        return self.tail(x, tape)


class Wan21(PublishedCodec):
    """The family; a config may narrow it (`codec_channels`)."""

    def __init__(self, c: VideoConfig) -> None:
        super().__init__(WAN_CHANNELS)
        self.config = c
        base = c.codec_channels or CHANNELS
        self.latent_mean.copy_(torch.tensor(LATENT_MEAN))
        self.latent_scale.copy_(torch.tensor(LATENT_STD))
        self.encoder, self.decoder = Encoder(base), Decoder(base)
        self.quant_conv = nn.Conv3d(2 * WAN_CHANNELS, 2 * WAN_CHANNELS, 1)
        self.post_quant_conv = nn.Conv3d(WAN_CHANNELS, WAN_CHANNELS, 1)

    def encode(self, media: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """frames uint8 [B, 4 U, H, W, 3] (4 U - 3 of a fresh stream) -> latents [B, U * n_v, latent_dim], state."""
        tape = Tape(state, self.latent_mean.expand(media.shape[0], -1))
        x = media.to(self.latent_mean.dtype).permute(0, 4, 1, 2, 3) / 127.5 - 1.0  # TensorRT moves no bytes about
        # The encoder gives mean and log variance; a stream takes the mean.
        mean = self.quant_conv(self.encoder(x, tape))[:, :WAN_CHANNELS].transpose(1, 2)
        scaled = (mean - self.latent_mean.view(-1, 1, 1)) / self.latent_scale.view(-1, 1, 1)
        return to_tokens(scaled, self.config), tape.close()

    def decode(self, latents: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """latents [B, U * n_v, latent_dim] -> pixels [B, 4 U, H, W, 3] (4 U - 3 of a fresh stream), new state."""
        tape = Tape(state, latents)
        z = from_tokens(latents, self.config) * self.latent_scale.view(-1, 1, 1) + self.latent_mean.view(-1, 1, 1)
        x = self.decoder(self.post_quant_conv(z.transpose(1, 2)), tape)
        return (x.permute(0, 2, 3, 4, 1).clamp(-1.0, 1.0) + 1.0) * 127.5, tape.close()

    def rest(self) -> Tensor:
        """The one frame that the published stream begins with, grey."""
        c = self.config
        return torch.full((1, 1, c.height, c.width, 3), 128, dtype=torch.uint8, device=self.latent_mean.device)

    def twin(self) -> Wan21:
        return Wan21(self.config)
