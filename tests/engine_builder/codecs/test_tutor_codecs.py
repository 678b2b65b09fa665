"""The tutor's encoders and codecs: streaming equals offline, nothing depends on a later input."""

from pathlib import Path

import numpy as np
import pytest
import torch

from engine_builder.checkpoint import load_checkpoint, random_model
from engine_builder.model.codecs.mdct import mdct_matrix
from engine_builder.model.steps import PerceiveStep, RenderStep, start_states
from engine_builder.presets import preset

pytestmark = pytest.mark.unit

UNITS = 5
TUTOR = Path(__file__).parents[3] / "checkpoints/tutor"


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
        c = model.config
        parts = (random(2, UNITS * 4, c.video.latent_dim), random(2, UNITS * 2, c.audio.latent_dim))
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
        pcm, _ = codec.decode(codec.encode(tone, None)[0], None)
    error = (pcm[0, 640:] - tone[0, 320:-320]).square().mean() / tone.square().mean()
    assert 10 * np.log10(float(error)) < -25


def test_video_codec_keeps_a_smooth_picture(model):
    codec = model.video_codec
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    picture = torch.stack((x * 3, y * 3, x + y), dim=-1).byte().expand(1, 4, -1, -1, -1)
    with torch.no_grad():
        frames = codec.decode_linear(codec.encode(picture, None)[0]).permute(0, 1, 3, 4, 2)
    error = ((frames + 1) * 127.5 - picture.float()).abs().mean()
    assert float(error) < 6.0


def test_tutor_codecs_compute_what_they_did():
    """The formulas of the first release, written out, over the weights of the tutor: equal to the last bit."""
    m = load_checkpoint(TUTOR)
    c, w = m.config, m.state_dict()
    z_audio = random(2, 2 * c.audio.tokens, c.audio.latent_dim)
    z_video = random(2, 2 * c.video.tokens, c.video.latent_dim, seed=1)
    with torch.no_grad():
        pcm, overlap = m.audio_codec.decode(z_audio, random(2, c.audio.hop, seed=2))
        blocks = (z_audio * w["audio_codec.latent_scale"]) @ w["audio_codec.basis"] + w["audio_codec.mean"]
        windows = (blocks.reshape(2, -1, c.audio.hop) * w["audio_codec.bin_scale"]) @ mdct_matrix(c.audio.hop).T
        head, tail = windows[..., : c.audio.hop], windows[..., c.audio.hop :]
        before = torch.cat((random(2, c.audio.hop, seed=2).unsqueeze(1), tail[:, :-1]), dim=1)
        assert torch.equal(pcm, (head + before).reshape(2, -1).clamp(-1.0, 1.0))
        assert torch.equal(overlap, tail[:, -1])

        last = random(2, 3 * c.video.height * c.video.width, seed=3)
        pixels, _ = m.video_codec.decode(z_video, last)
        z = z_video.view(2, 2, c.video.tokens, c.video.latent_dim) * w["video_codec.latent_scale"]
        rows, columns = c.video.grid
        x = (z @ w["video_codec.basis"] + w["video_codec.mean"]).view(
            2, 2, rows, columns, 4, c.video.stride, c.video.stride, 3
        )
        linear = x.permute(0, 1, 4, 7, 2, 5, 3, 6).reshape(2, 8, 3, c.video.height, c.video.width)
        pair = torch.cat((torch.cat((last.view(2, 1, *linear.shape[2:]), linear[:, :-1]), dim=1), linear), dim=2)
        hidden = torch.nn.functional.silu(m.video_codec.refine_in(pair.flatten(0, 1)))
        frames = linear + m.video_codec.refine_out(hidden).view_as(linear)
        assert torch.equal(pixels, (frames.permute(0, 1, 3, 4, 2).clamp(-1.0, 1.0) + 1.0) * 127.5)


def test_tutor_states_start_at_zero():
    assert start_states(load_checkpoint(TUTOR)) == {}
