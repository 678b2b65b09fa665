"""Every family, unit by unit, against who else makes it (`oracles`), at a small width and at the published one.

What pocket-tts made is in a file, so that no machine that tests needs the package; `make codec-parity` has it.
"""

from pathlib import Path

import pytest
import torch
from families import FAMILIES, SMALL, codec, fingerprint, lively_mimi
from oracles import oracle_of
from safetensors.torch import load_file
from streams import DIRECTIONS, stream

from engine_builder.model.codecs.wan21 import LATENT_MEAN, LATENT_STD

pytestmark = pytest.mark.unit

UNITS, TOLERANCE = 24, 1e-4
EVERY = (
    7  # of the samples in the file: no factor in common with the strides 4, 5, 6 and 16, so that it meets each place
)


FULL = pytest.param(("wan21", 0), marks=pytest.mark.slow)  # 0: the published width


@pytest.fixture(scope="module", params=[*((f, SMALL) for f in FAMILIES), ("mimi-vae", 0), ("taehv", 0), FULL], ids=str)
def made(request):
    family, channels = request.param
    return family, lively_mimi(channels) if family == "mimi-vae" else codec(family, channels)


@pytest.mark.parametrize("direction", DIRECTIONS)
@torch.no_grad()
def test_units_equal_the_oracle(made, direction):
    family, codec = made
    given = stream(codec, family, direction, UNITS)
    out, _ = given.by_units(UNITS)
    if family == "mimi-vae":
        stored = load_file(Path(__file__).with_name("mimi_reference.safetensors"))
        width = f"{codec.config.codec_channels or 64}."
        drawn = "weights are drawn in another way than when the reference was made: run make_mimi_reference.py"
        assert torch.allclose(fingerprint(codec), stored[width + "weights"], rtol=1e-4), drawn
        expected = stored[width + ("latents" if direction == "encode" else "pcm")]
        out = out if direction == "encode" else out[:, ::EVERY]
    else:
        expected = given.expected(oracle_of(codec))
    torch.testing.assert_close(out, expected, atol=TOLERANCE, rtol=0)
    assert expected.std() > 0.01
    assert direction == "encode" or (out.abs() < 1).float().mean() > 0.5  # little of it is clipped


@pytest.mark.slow  # not for its time: most machines lack the package
@pytest.mark.parametrize("direction", DIRECTIONS)
@torch.no_grad()
def test_mimi_equals_the_package(direction):
    pytest.importorskip("pocket_tts", reason="make codec-parity has it")
    made = lively_mimi()
    given = stream(made, "mimi-vae", direction, UNITS)
    torch.testing.assert_close(given.by_units(UNITS)[0], given.expected(oracle_of(made)), atol=TOLERANCE, rtol=0)


def test_published_mean_and_scale():
    from diffusers import AutoencoderKLWan

    config = AutoencoderKLWan(base_dim=SMALL).config
    assert list(config.latents_mean) == list(LATENT_MEAN)
    assert list(config.latents_std) == list(LATENT_STD)
