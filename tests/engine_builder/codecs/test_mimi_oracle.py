"""`mimi-vae` against what the pocket-tts package made of the same weights, by name (make_mimi_reference.py)."""

from pathlib import Path

import pytest
import torch
from families import SMALL, fingerprint, latents, lively_mimi, media
from safetensors.torch import load_file

from engine_builder.model.codecs.mimi_vae import CHANNELS

pytestmark = pytest.mark.unit
UNITS, EVERY = 24, 7


@pytest.mark.parametrize("channels", [SMALL, CHANNELS])
@torch.no_grad()
def test_mimi_vae_equals_pocket_tts(channels):
    stored = load_file(Path(__file__).with_name("mimi_reference.safetensors"))
    expected = {n: stored[f"{channels}.{n}"] for n in ("latents", "pcm", "weights")}
    made = lively_mimi(channels)
    drawn = "weights are drawn in another way than when the reference was made: run make_mimi_reference.py"
    assert torch.allclose(fingerprint(made), expected["weights"], rtol=1e-4), drawn
    state, decoder_state = (each[None] for each in made.start())

    heard = []
    for unit in media("mimi-vae", UNITS).chunk(UNITS, dim=1):
        z, state = made.encode(unit, state)
        heard.append(z)
    torch.testing.assert_close(torch.cat(heard, dim=1), expected["latents"], atol=1e-4, rtol=0)

    said = []
    for unit in (0.3 * latents("mimi-vae", UNITS)).chunk(UNITS, dim=1):
        sound, decoder_state = made.decode(unit, decoder_state)
        said.append(sound)
    said = torch.cat(said, dim=1)[:, ::EVERY]
    torch.testing.assert_close(said, expected["pcm"], atol=1e-4, rtol=0)
    assert said.abs().mean() > 0.01
    assert (said.abs() < 1).float().mean() > 0.5
