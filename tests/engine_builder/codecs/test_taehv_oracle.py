"""`taehv` against a plain reading of the published structure: one frame after the other, one block after the other."""

import pytest
import torch
from families import SMALL, codec, latents, media
from torch.nn.functional import conv2d, interpolate, relu

from engine_builder.model.codecs.taehv import CHANNELS
from engine_builder.model.codecs.wan_latents import from_tokens, to_tokens

pytestmark = pytest.mark.unit

UNITS = 24
# The published sequences; pool and grow name their number of frames.
STAGE = ("memory", "memory", "memory")
ENCODER = ("conv", "relu", "pool2", "conv2", *STAGE, "pool2", "conv2", *STAGE, "pool1", "conv2", *STAGE, "conv")
DECODER = ("clamp", "conv", "relu", *STAGE, "up", "grow1", "conv", *STAGE, "up", "grow2", "conv", *STAGE, "up")
DECODER += ("grow2", "conv", "relu", "conv")


class Plain:
    """Pushes frames [C, h, w] through a sequence of blocks, by the tensors' published names."""

    def __init__(self, blocks, weights, prefix):
        self.blocks, self.weights, self.prefix = blocks, weights, prefix
        self.memory, self.out = {}, []

    def conv(self, name, x, stride=1):
        weight = self.weights[f"{self.prefix}.{name}.weight"]
        bias = self.weights.get(f"{self.prefix}.{name}.bias")
        return conv2d(x[None], weight, bias, stride, padding=weight.shape[-1] // 2)[0]

    def push(self, x, at=0):
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
            self.memory.setdefault(at, []).append(x)
            if len(self.memory[at]) < int(kind[-1]):
                return
            frames = [self.conv(f"{at}.conv", torch.cat(self.memory.pop(at)))]
        elif kind.startswith("grow"):
            frames = self.conv(f"{at}.conv", x).chunk(int(kind[-1]))
        for frame in frames:
            self.push(frame, at + 1)


@pytest.mark.parametrize("channels", [SMALL, CHANNELS])
@torch.no_grad()
def test_taehv_equals_a_plain_implementation(channels):
    made = codec("taehv", channels)
    weights, c = made.state_dict(), made.config
    mean, scale = made.latent_mean.view(-1, 1, 1), made.latent_scale.view(-1, 1, 1)
    pictures = torch.cat((made.rest(), media("taehv", UNITS)), dim=1)

    encoder = Plain(ENCODER, weights, "encoder")
    for picture in pictures[0]:
        encoder.push(picture.permute(2, 0, 1) / 255.0)
    expected = to_tokens(((torch.stack(encoder.out) - mean) / scale)[None], c)
    start, decoder_start = made.start()
    state, got = start[None], []
    for unit in pictures[:, 4:].chunk(UNITS, dim=1):
        z, state = made.encode(unit, state)
        got.append(z)
    torch.testing.assert_close(torch.cat(got, dim=1), expected[:, c.tokens :], atol=1e-4, rtol=0)

    z = torch.cat((made.encode(made.rest(), None)[0], latents("taehv", UNITS)), dim=1)
    decoder = Plain(DECODER, weights, "decoder")
    for latent in from_tokens(z, c)[0]:
        decoder.push(latent * scale + mean)
    expected = torch.stack(decoder.out).permute(0, 2, 3, 1).clamp(0, 1)[4:]
    state, got = decoder_start[None], []
    for unit in z[:, c.tokens :].chunk(UNITS, dim=1):
        pixels, state = made.decode(unit, state)
        got.append(pixels[0] / 255)
    torch.testing.assert_close(torch.cat(got), expected, atol=1e-4, rtol=0)
    assert len(encoder.out) == UNITS + 1
    assert len(decoder.out) == 4 * (UNITS + 1)
