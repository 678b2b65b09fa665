"""`wan21` against diffusers' AutoencoderKLWan, which loads our weights by name."""

import pytest
import torch
from families import SMALL, codec, latents, media

from engine_builder.model.codecs.wan21 import CHANNELS, LATENT_MEAN, LATENT_STD
from engine_builder.model.codecs.wan_latents import from_tokens, to_tokens

pytestmark = pytest.mark.unit
diffusers = pytest.importorskip("diffusers", reason="the oracle of wan21 is the diffusers package")

UNITS = 24


@pytest.mark.parametrize("channels", [SMALL, pytest.param(CHANNELS, marks=pytest.mark.slow)])
@torch.no_grad()
def test_wan21_equals_diffusers(channels):
    made = codec("wan21", channels)
    c, own = made.config, {"latent_mean", "latent_scale"}
    oracle = diffusers.AutoencoderKLWan(base_dim=channels).eval()
    oracle.load_state_dict({name: t for name, t in made.state_dict().items() if name not in own})  # strict: all names
    mean, scale = made.latent_mean.view(-1, 1, 1), made.latent_scale.view(-1, 1, 1)
    pictures = torch.cat((made.rest(), media("wan21", UNITS)), dim=1)  # one still frame, then units

    clip = pictures.permute(0, 4, 1, 2, 3) / 127.5 - 1.0
    expected = oracle.encode(clip).latent_dist.mode().transpose(1, 2)
    start, decoder_start = made.start()
    state, got = start[None], []
    for unit in pictures[:, 1:].chunk(UNITS, dim=1):
        z, state = made.encode(unit, state)
        got.append(z)
    torch.testing.assert_close(
        torch.cat(got, 1), to_tokens((expected - mean) / scale, c)[:, c.tokens :], atol=1e-4, rtol=0
    )

    z = torch.cat((made.encode(made.rest(), None)[0], latents("wan21", UNITS)), dim=1)
    clip = (from_tokens(z, c) * scale + mean).transpose(1, 2)
    expected = oracle.decode(clip).sample.permute(0, 2, 3, 4, 1)
    assert expected.shape[1] == 1 + 4 * UNITS
    state, got = decoder_start[None], []
    for unit in z[:, c.tokens :].chunk(UNITS, dim=1):
        pixels, state = made.decode(unit, state)
        got.append(pixels / 127.5 - 1.0)
    torch.testing.assert_close(torch.cat(got, 1), expected[:, 1:], atol=2e-4, rtol=0)  # of a range of 2


def test_published_mean_and_scale():
    config = diffusers.AutoencoderKLWan(base_dim=SMALL).config
    assert list(config.latents_mean) == list(LATENT_MEAN)
    assert list(config.latents_std) == list(LATENT_STD)
