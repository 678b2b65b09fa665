"""Where a tensor is: batches, draws, masks and losses at home, on the CPU; the network's arithmetic at its weights.

So a run draws the same numbers on every device, and what goes to and fro is small beside a step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def device_of(module: nn.Module) -> torch.device:
    """Where the weights are."""
    return next(module.parameters()).device


def home(tensor: Tensor) -> Tensor:
    """On the CPU; gradients find their way back."""
    return tensor.cpu()
