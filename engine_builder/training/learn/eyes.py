"""Warm-up of the video encoder: which card is in view?

In joint training a card is one word in a few hundred units, too little to teach a small convolutional network colours
in ten minutes. Here every unit of a thousand rooms is an example. The classifier head is thrown away afterwards.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from engine_builder.config import FRAMES_PER_UNIT
from engine_builder.model.duplex import DuplexModel

from ..world.camera import CARD_RGB, Camera, CardShow, sensor_noise_bank
from .devices import device_of, home
from .warm_up import warm_up

UNITS = 2  # a unit before and the one that is judged
_EMPTY = 0.3  # share of rooms without a card
_SHARES = np.array([1, 1, 1, 1, 2, 2]) / 8  # of the colours: white is a wall's and black is hair's colour as well


def rooms(rng: np.random.Generator, count: int, noise: np.ndarray, held_out: bool = False) -> tuple[Tensor, Tensor]:
    """frames uint8 [count, 4 * UNITS, H, W, 3] and classes int64 [count] of the last unit: 0 none, 1 + colour."""
    frames, classes = [], []
    last = FRAMES_PER_UNIT * (UNITS - 1)
    for _ in range(count):
        if rng.random() < _EMPTY:
            shows, kind = [], 0
        else:
            colour = int(rng.choice(len(CARD_RGB), p=_SHARES))
            # In view during the whole last unit, for some time or just arrived.
            shows, kind = [CardShow(colour, int(rng.integers(-8, last - 1)), last + 20)], colour + 1
        frames.append(Camera(rng, noise, held_out).frames(FRAMES_PER_UNIT * UNITS, shows))
        classes.append(kind)
    return torch.from_numpy(np.stack(frames)), torch.tensor(classes)


def classify(model: DuplexModel, head: nn.Linear, frames: Tensor) -> Tensor:
    """Logits [B, 7] from the mean of the last unit's tokens."""
    encoder, frames = model.video_encoder, frames.to(device_of(model))
    tokens, _ = encoder(frames, frames.new_zeros(len(frames), encoder.state_size, dtype=torch.float32))
    return home(head(tokens.view(len(frames), UNITS, -1, tokens.shape[-1])[:, -1].mean(dim=1)))


def open_eyes(
    model: DuplexModel,
    seed: int,
    steps: int = 1500,
    batch: int = 48,
) -> float:
    """Trains `model.video_encoder`; returns the share of held-out rooms that it then classifies correctly."""
    torch.manual_seed(seed)
    head = nn.Linear(model.config.backbone.hidden_size, 1 + len(CARD_RGB)).to(device_of(model))
    noise = sensor_noise_bank(1)

    def draw(step: int) -> tuple[Tensor, Tensor]:
        return rooms(np.random.default_rng([seed, 41, step]), batch, noise)

    def loss(drawn: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(classify(model, head, drawn[0]), drawn[1])

    warm_up("eyes", [*model.video_encoder.parameters(), *head.parameters()], draw, loss, steps)
    with torch.no_grad():
        frames, classes = rooms(np.random.default_rng([seed, 42]), 256, sensor_noise_bank(2), held_out=True)
        return float((classify(model, head, frames).argmax(dim=1) == classes).float().mean())
