"""Writes what the pocket-tts package makes of seeded sound with seeded weights: mimi_reference.safetensors.

make build/oracles/.ready && PYTHONPATH=build/oracles:. python tests/engine_builder/codecs/make_mimi_reference.py
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import torch
from families import SMALL, fingerprint, lively_mimi
from oracles import oracle_of
from safetensors.torch import save_file
from streams import stream
from test_oracles import EVERY, UNITS

from engine_builder.model.codecs.mimi_vae import CHANNELS

FILE = Path(__file__).with_name("mimi_reference.safetensors")


@torch.no_grad()
def reference(channels: int) -> dict[str, torch.Tensor]:
    """Latents of 24 units behind a rest, and the sound of 24 units of latents behind those of the rest."""
    made = lively_mimi(channels)
    heard, said = (stream(made, "mimi-vae", way, UNITS).expected(oracle_of(made)) for way in ("encode", "decode"))
    tensors = {"latents": heard, "pcm": said[:, ::EVERY], "weights": fingerprint(made)}
    return {f"{channels}.{name}": t.contiguous() for name, t in tensors.items()}


if __name__ == "__main__":
    found = {**reference(SMALL), **reference(CHANNELS)}
    save_file(found, FILE, {"pocket-tts": version("pocket-tts"), "torch": torch.__version__})
    print(FILE, FILE.stat().st_size, "bytes")
