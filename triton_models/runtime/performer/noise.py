"""The noise that a unit's latents start from: a function of (session seed, unit, element), and of nothing else.

Counter-based (Philox 4x64-10, Salmon et al. 2011, doi 10.1145/2063384.2063405): no generator object lives on between
units, so a session replays whatever else shares its batch, and a rank that holds part of the latents makes its part.
"""

from __future__ import annotations

import numpy as np

from engine_builder.config import ModelConfig

from ..messages import Float32

MAX_SEED = 2**64 - 1
_PHILOX_LANES = 4  # 64-bit words of one counter value


def gaussian(seed: int, unit: int, count: int, start: int = 0) -> Float32:
    """Elements start .. start + count - 1 of the standard normal sequence of (seed, unit), float32 [count].

    Element i is Box-Muller on words 2j and 2j + 1 (j = i // 2) of the Philox stream with key (seed, unit): the cosine
    for an even i, the sine for an odd one. So it depends neither on `start` nor on `count`. `ValueError` outside
    0..2^64-1.
    """
    for name, value, limit in (("seed", seed, MAX_SEED), ("unit", unit, MAX_SEED), ("start", start, 2**62)):
        if not 0 <= value <= limit:
            raise ValueError(f"{name}: expected 0 to {limit}, got {value}")
    if count < 0:
        raise ValueError(f"count: expected >= 0, got {count}")
    stream = np.random.Philox(key=np.array([seed, unit], dtype=np.uint64))
    first = start // _PHILOX_LANES * _PHILOX_LANES  # `advance` moves by whole counter values
    stream.advance(first // _PHILOX_LANES)
    pairs = (start - first + count + 1) // 2
    words = np.asarray(stream.random_raw(2 * pairs), dtype=np.uint64)
    # 53 bits as a double gives [0, 1); the radius takes (0, 1] because log(0) is not a number to add noise with.
    uniform = (words >> np.uint64(11)).astype(np.float64)
    radius = np.sqrt(-2.0 * np.log((uniform[0::2] + 1.0) * 2.0**-53))
    angle = uniform[1::2] * (2.0 * np.pi * 2.0**-53)
    normal = np.empty(2 * pairs, dtype=np.float64)
    normal[0::2] = radius * np.cos(angle)
    normal[1::2] = radius * np.sin(angle)
    return normal[start - first : start - first + count].astype(np.float32)


def latents(config: ModelConfig, seed: int, unit: int) -> tuple[Float32, Float32]:
    """Noise of one unit: z_video [n_v, c_v] and z_audio [n_a, c_a], the flattened [z^v | z^a] cut in two."""
    video = (config.video.tokens, config.video.latent_dim)
    audio = (config.audio.tokens, config.audio.latent_dim)
    cut = video[0] * video[1]
    flat = gaussian(seed, unit, cut + audio[0] * audio[1])
    return flat[:cut].reshape(video), flat[cut:].reshape(audio)
