"""Streaming equals offline, and nothing an encoder or decoder gives out depends on a later input."""

import numpy as np
import pytest
import torch

from engine_builder.checkpoint import random_model
from engine_builder.config import preset
from engine_builder.model.audio_codec import mdct_matrix
from engine_builder.model.steps import PerceiveStep, RenderStep

pytestmark = pytest.mark.unit

UNITS = 5


@pytest.fixture(scope="module")
def model():
    return random_model(preset("tiny"), seed=0)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pictures(batch, frames, seed=0):
    return torch.randint(0, 256, (batch, frames, 64, 64, 3), generator=torch.Generator().manual_seed(seed)).byte()


def stream(step, parts, state):
    """Runs a step unit by unit and concatenates its outputs over time."""
    outputs = []
    for unit in range(UNITS):
        *out, state = step(*(p[:, unit * p.shape[1] // UNITS : (unit + 1) * p.shape[1] // UNITS] for p in parts), state)
        outputs.append(out)
    return [torch.cat(o, dim=1) for o in zip(*outputs, strict=True)]


def offline_and_streamed(model, which):
    if which == "perceive":
        step = PerceiveStep(model)
        parts = (random(2, UNITS * 2560) * 0.1, pictures(2, UNITS * 4))
    else:
        step = RenderStep(model)
        parts = (random(2, UNITS * 4, 48), random(2, UNITS * 2, 320))
    state = torch.zeros(2, step.state_size)
    return step, parts, state


@pytest.mark.parametrize("which", ["perceive", "render"])
def test_streaming_equals_offline(model, which):
    step, parts, state = offline_and_streamed(model, which)
    with torch.no_grad():
        whole = step(*parts, state)[:-1]
        streamed = stream(step, parts, state)
    for a, b in zip(whole, streamed, strict=True):
        torch.testing.assert_close(a.float(), b.float(), atol=1e-5 if a.dtype.is_floating_point else 1.0, rtol=1e-4)


@pytest.mark.parametrize("which", ["perceive", "render"])
@pytest.mark.parametrize("changed", [1, 4])
def test_outputs_do_not_depend_on_later_units(model, which, changed):
    step, parts, state = offline_and_streamed(model, which)
    later = []
    for part in parts:
        other = part.clone()
        start = changed * part.shape[1] // UNITS
        other[:, start:] = (
            other[:, start:].flip(1) if part.dtype == torch.uint8 else random(*other[:, start:].shape, seed=9)
        )
        later.append(other)
    with torch.no_grad():
        before, after = step(*parts, state)[:-1], step(*later, state)[:-1]
    for a, b in zip(before, after, strict=True):
        stop = changed * a.shape[1] // UNITS
        assert torch.equal(a[:, :stop], b[:, :stop])
        assert not torch.equal(a[:, stop:], b[:, stop:])


def test_mdct_reconstructs_perfectly():
    hop = 320
    basis = mdct_matrix(hop).double()
    signal = random(1, 10 * hop).double()
    hops = torch.cat((torch.zeros(1, hop), signal), dim=1).view(1, 11, hop)
    coefficients = torch.cat((hops[:, :-1], hops[:, 1:]), dim=-1) @ basis
    windows = coefficients @ basis.T
    rebuilt = windows[:, 1:, :hop] + windows[:, :-1, hop:]
    torch.testing.assert_close(rebuilt.flatten(), signal[0, : 9 * hop], atol=1e-5, rtol=0)


def test_audio_codec_keeps_a_voice_band_tone(model):
    """One hop (20 ms) of delay, and the untrained low-pass keeps what lies below 2 kHz."""
    codec = model.audio_codec
    tone = 0.3 * torch.sin(2 * torch.pi * 300 * torch.arange(UNITS * 2560) / 16_000)[None]
    with torch.no_grad():
        latents, _ = codec.encode(tone, torch.zeros(1, 320))
        pcm, _ = codec.decode(latents, torch.zeros(1, 320))
    error = (pcm[0, 640:] - tone[0, 320:-320]).square().mean() / tone.square().mean()
    assert 10 * np.log10(float(error)) < -25


def test_video_codec_keeps_a_smooth_picture(model):
    codec = model.video_codec
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    picture = torch.stack((x * 3, y * 3, x + y), dim=-1).byte().expand(1, 4, -1, -1, -1)
    with torch.no_grad():
        frames = codec.decode_linear(codec.encode(picture)).permute(0, 1, 3, 4, 2)
    error = ((frames + 1) * 127.5 - picture.float()).abs().mean()
    assert float(error) < 6.0
