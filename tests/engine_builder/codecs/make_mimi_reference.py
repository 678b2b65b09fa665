"""Writes what the pocket-tts package makes of seeded sound with seeded weights: mimi_reference.safetensors.

    pip install --no-deps --target DIR pocket-tts==4.0.1 scipy einops    # it asks for numpy 2, and does without
    PYTHONPATH=DIR:. python tests/engine_builder/codecs/make_mimi_reference.py

The test reads that file, so that no machine that tests needs the package. Of the decoder's sound every 7th sample is
kept: 7 has no factor in common with the strides 4, 5, 6 and 16, so that in time it meets each of their places.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import torch
from families import SMALL, fingerprint, latents, lively_mimi, media
from pocket_tts.models.mimi import MimiModel, build_mimi
from pocket_tts.modules.stateful_module import StatefulModule, init_states
from pocket_tts.utils.config import MimiConfig
from safetensors.torch import save_file

from engine_builder.model.codecs.mimi_vae import CHANNELS

FILE = Path(__file__).with_name("mimi_reference.safetensors")
UNITS, REST, EVERY = 24, 16, 7  # REST in latents


def published(channels: int) -> MimiModel:
    """The structure of pocket-tts' `english.yaml` at another width."""
    width = 8 * channels
    seanet = {"dimension": width, "channels": 1, "n_filters": channels, "n_residual_layers": 1, "ratios": [6, 5, 4]}
    seanet |= {"kernel_size": 7, "residual_kernel_size": 3, "last_kernel_size": 3, "dilation_base": 2}
    seanet |= {"pad_mode": "constant", "compress": 2}
    transformer = {"d_model": width, "num_heads": 8, "num_layers": 2, "layer_scale": 0.01, "context": 250}
    transformer |= {"dim_feedforward": 4 * width, "input_dimension": width, "output_dimensions": [width]}
    config = {"dtype": "float32", "sample_rate": 24000, "inner_dim": 32, "outer_dim": width, "channels": 1}
    config |= {"frame_rate": 12.5, "seanet": seanet, "transformer": transformer}
    return build_mimi(MimiConfig(**config, quantizer={"dimension": 32, "output_dimension": width})).eval()


@torch.no_grad()
def reference(channels: int) -> dict[str, torch.Tensor]:
    """Latents of 24 units behind a rest, and the sound of 24 units of latents behind those of the rest."""
    made, oracle = lively_mimi(channels), published(channels)
    own = {"latent_mean", "latent_scale"}
    oracle.load_state_dict({name: t for name, t in made.state_dict().items() if name not in own})  # strict: all names
    for name, module in oracle.named_modules():
        if isinstance(module, StatefulModule):
            module._module_absolute_name = name
    mean, scale = made.latent_mean, made.latent_scale
    heard = oracle.encode_to_latent(torch.cat((made.rest(), media("mimi-vae", UNITS)), dim=1)[:, None])
    heard = (heard - mean) / scale
    z = torch.cat((heard[:, :REST], 0.3 * latents("mimi-vae", UNITS)), dim=1)
    states = init_states(oracle, batch_size=1, sequence_length=16 * z.shape[1])
    pcm = oracle.decode_from_latent(z * scale + mean, states)[:, 0].clamp(-1, 1)
    tensors = {"latents": heard[:, REST:], "pcm": pcm[:, REST * 1920 :][:, ::EVERY], "weights": fingerprint(made)}
    return {f"{channels}.{name}": t.contiguous() for name, t in tensors.items()}


if __name__ == "__main__":
    found = {**reference(SMALL), **reference(CHANNELS)}
    save_file(found, FILE, {"pocket-tts": version("pocket-tts"), "torch": torch.__version__})
    print(FILE, FILE.stat().st_size, "bytes")
