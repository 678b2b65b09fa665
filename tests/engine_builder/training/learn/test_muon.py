"""The optimiser: orthogonal updates, both parameter groups, and a state that survives a restart."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine_builder.training.learn.muon import Optimiser, orthogonalise

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (32, 32)])
def test_singular_values_come_close_to_one(shape: tuple[int, int]) -> None:
    values = torch.linalg.svdvals(orthogonalise(torch.randn(*shape, generator=torch.Generator().manual_seed(1))))
    assert values.min() > 0.3
    assert values.max() < 1.4


class _Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8, bias=False)])
        self.head = nn.Linear(8, 2)


def _train(model: _Toy, optimiser: Optimiser, steps: range) -> float:
    loss = torch.zeros(())
    for step in steps:
        x = torch.randn(32, 8, generator=torch.Generator().manual_seed(step))
        loss = (model.head(torch.tanh(model.layers[0](x))) - x[:, :2]).square().mean()
        loss.backward()
        optimiser.step(1.0)
    return float(loss.detach())


def test_it_learns_and_resumes_to_the_same_weights() -> None:
    torch.manual_seed(0)
    straight, broken = _Toy(), _Toy()
    broken.load_state_dict(straight.state_dict())
    first = Optimiser(straight)
    start = _train(straight, first, range(1))
    end = _train(straight, first, range(1, 60))
    assert end < 0.3 * start
    half = Optimiser(broken)
    _train(broken, half, range(30))
    rest = Optimiser(broken)
    rest.load_state_dict(half.state_dict())
    _train(broken, rest, range(30, 60))
    for a, b in zip(straight.parameters(), broken.parameters(), strict=True):
        torch.testing.assert_close(a, b)
