"""One checkpoint of several: the mean of their weights.

Runs that went on from one checkpoint stay in one basin of the loss, and their mean has learned what each did and
forgotten less ("model soups", Wortsman et al. 2022, arXiv:2203.05482).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..config import ConfigError
from ..model.duplex import DuplexModel
from .learn.ears import with_longer_ears


def average(models: Sequence[DuplexModel], shares: Sequence[float]) -> DuplexModel:
    """The mean of `models`, each counted by its share. Whoever has shorter ears gets the rest of the longest, which is
    nothing in it. Raises ConfigError for models of other shapes."""
    longest = max((model.config.audio.encoder_dilations for model in models), key=len)
    alike = [with_longer_ears(model, longest[len(model.config.audio.encoder_dilations) :]) for model in models]
    mean = alike[0]
    if any(model.config != mean.config for model in alike):
        raise ConfigError("checkpoints: expected one shape, and ears that begin alike, got others")
    weights = torch.tensor(shares, dtype=torch.float64)
    states = [model.state_dict() for model in alike]
    mean.load_state_dict(
        {
            name: torch.einsum("i,i...->...", weights / weights.sum(), torch.stack([s[name].double() for s in states]))
            for name in states[0]
        }
    )
    return mean
