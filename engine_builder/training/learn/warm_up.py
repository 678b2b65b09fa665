"""The loop of the encoders' warm-ups: AdamW over fresh examples, the rate falling to zero over the second half."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

_LR = 2e-3


def warm_up(parameters: Iterable[nn.Parameter], loss_of_batch: Callable[[], Tensor], steps: int) -> None:
    """Takes `steps` steps down `loss_of_batch()`, which draws a batch."""
    optimiser = torch.optim.AdamW([*parameters], lr=_LR)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, 2.0 * (1 - step / steps)))
    for _ in range(steps):
        loss = loss_of_batch()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
