"""The loop of the encoders' warm-ups: AdamW over fresh examples, the rate falling to zero over the second half."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import TypeVar

import torch
from torch import Tensor, nn

from .ahead import ahead

T = TypeVar("T")
_LR = 2e-3
_SAID_EVERY = 100
_LOG = logging.getLogger(__name__)


def warm_up(
    name: str,
    parameters: Iterable[nn.Parameter],
    draw: Callable[[int], T],
    loss_of: Callable[[T], Tensor],
    steps: int,
) -> None:
    """Takes `steps` steps down `loss_of(draw(step))`; batches are drawn ahead, in another thread. Logs under `name`."""
    optimiser = torch.optim.AdamW([*parameters], lr=_LR)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, 2.0 * (1 - step / steps)))
    with closing(ahead(draw)) as source:
        for step in range(steps):
            loss = loss_of(next(source))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            if (step + 1) % _SAID_EVERY == 0:
                _LOG.info("%s: %d of %d, loss %.3f", name, step + 1, steps, loss.item())
