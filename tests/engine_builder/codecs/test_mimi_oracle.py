"""`mimi-vae` against the pocket-tts package, which loads our weights by name."""

import pytest
import torch
from families import SMALL, codec, latents, media

from engine_builder.model.codecs.mimi_vae import CHANNELS

pytestmark = pytest.mark.unit
mimi = pytest.importorskip("pocket_tts.models.mimi", reason="the oracle of mimi-vae is the pocket-tts package")

UNITS = 24
REST = 16  # latents


def published(channels):
    """The structure of pocket-tts' `english.yaml` at another width."""
    from pocket_tts.utils.config import MimiConfig

    width = 8 * channels
    seanet = {"dimension": width, "channels": 1, "n_filters": channels, "n_residual_layers": 1, "ratios": [6, 5, 4]}
    seanet |= {"kernel_size": 7, "residual_kernel_size": 3, "last_kernel_size": 3, "dilation_base": 2}
    seanet |= {"pad_mode": "constant", "compress": 2}
    transformer = {"d_model": width, "num_heads": 8, "num_layers": 2, "layer_scale": 0.01, "context": 250}
    transformer |= {"dim_feedforward": 4 * width, "input_dimension": width, "output_dimensions": [width]}
    config = {"dtype": "float32", "sample_rate": 24000, "inner_dim": 32, "outer_dim": width, "channels": 1}
    config |= {"frame_rate": 12.5, "seanet": seanet, "transformer": transformer}
    return mimi.build_mimi(MimiConfig(**config, quantizer={"dimension": 32, "output_dimension": width})).eval()


@pytest.mark.parametrize("channels", [SMALL, CHANNELS])
@torch.no_grad()
def test_mimi_vae_equals_pocket_tts(channels):
    from pocket_tts.modules.stateful_module import StatefulModule, init_states

    made = codec("mimi-vae", channels)
    for name, scale in made.named_parameters():
        if "layer_scale" in name:
            scale.fill_(0.7)  # as published they would hide an error of attention
    oracle = published(channels)
    own = {"latent_mean", "latent_scale"}
    oracle.load_state_dict({name: t for name, t in made.state_dict().items() if name not in own})  # strict: all names
    for name, module in oracle.named_modules():
        if isinstance(module, StatefulModule):
            module._module_absolute_name = name
    rest, pcm = made.rest(), media("mimi-vae", UNITS)

    expected = oracle.encode_to_latent(torch.cat((rest, pcm), dim=1)[:, None])
    expected = (expected - made.latent_mean) / made.latent_scale
    start, decoder_start = made.start()
    state, got = start[None], []
    for unit in pcm.chunk(UNITS, dim=1):
        z, state = made.encode(unit, state)
        got.append(z)
    torch.testing.assert_close(torch.cat(got, dim=1), expected[:, REST:], atol=1e-4, rtol=0)

    z = torch.cat((made.encode(rest, None)[0], 0.3 * latents("mimi-vae", UNITS)), dim=1)
    states = init_states(oracle, batch_size=1, sequence_length=16 * z.shape[1])
    expected = oracle.decode_from_latent(z * made.latent_scale + made.latent_mean, states)[:, 0]
    state, got = decoder_start[None], []
    for unit in z[:, REST:].chunk(UNITS, dim=1):
        sound, state = made.decode(unit, state)
        got.append(sound)
    expected = expected[:, REST * 1920 :].clamp(-1, 1)
    torch.testing.assert_close(torch.cat(got, dim=1), expected, atol=1e-4, rtol=0)
    assert expected.abs().mean() > 0.01
    assert (expected.abs() < 1).float().mean() > 0.5
