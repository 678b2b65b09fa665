"""Muon for the Transformer's matrices, AdamW for everything else, as one optimiser with safetensors-friendly state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Quintic Newton-Schulz coefficients and momentum of Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers").
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_MOMENTUM = 0.95
_BETAS = (0.9, 0.98)
_EPSILON = 1e-8


def orthogonalise(gradient: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: singular values of [m, n] are brought to about 1."""
    a, b, c = _COEFFICIENTS
    x = gradient.to(torch.bfloat16)
    transposed = x.shape[0] > x.shape[1]
    if transposed:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if transposed else x).float()


class Optimiser:
    """`step(rate)` with rate 0..1 scales both learning rates: the schedule's only knob.

    Muon: weight matrices of attention and MLP. AdamW: embeddings, encoders, heads, norms, biases, modulation.
    """

    def __init__(self, model: nn.Module, muon_lr: float = 0.02, adam_lr: float = 2e-3, decay: float = 0.01) -> None:
        self.muon_lr, self.adam_lr, self.decay = muon_lr, adam_lr, decay
        self.count = 0
        self._matrices: dict[str, nn.Parameter] = {}
        self._others: dict[str, nn.Parameter] = {}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            hidden = "layers." in name and parameter.ndim == 2
            (self._matrices if hidden else self._others)[name] = parameter
        self._state: dict[str, Tensor] = {}

    def step(self, rate: float) -> None:
        """Applies and clears all gradients."""
        self.count += 1
        with torch.no_grad():
            for name, parameter in self._matrices.items():
                self._muon(name, parameter, rate * self.muon_lr)
            for name, parameter in self._others.items():
                self._adam(name, parameter, rate * self.adam_lr)

    def _muon(self, name: str, parameter: nn.Parameter, lr: float) -> None:
        if parameter.grad is None:
            return
        momentum = self._slot(f"{name}/momentum", parameter)
        momentum.lerp_(parameter.grad, 1 - _MOMENTUM)
        update = orthogonalise(parameter.grad.lerp(momentum, _MOMENTUM))
        aspect = max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
        parameter.mul_(1 - lr * self.decay).add_(update, alpha=-lr * aspect)
        parameter.grad = None

    def _adam(self, name: str, parameter: nn.Parameter, lr: float) -> None:
        if parameter.grad is None:
            return
        first, second = self._slot(f"{name}/first", parameter), self._slot(f"{name}/second", parameter)
        first.lerp_(parameter.grad, 1 - _BETAS[0])
        second.lerp_(parameter.grad.square(), 1 - _BETAS[1])
        unbiased = first / (1 - _BETAS[0] ** self.count)
        scale = (second / (1 - _BETAS[1] ** self.count)).sqrt().add_(_EPSILON)
        parameter.add_(unbiased / scale, alpha=-lr)
        parameter.grad = None

    def _slot(self, key: str, like: Tensor) -> Tensor:
        if key not in self._state:
            self._state[key] = torch.zeros_like(like)
        return self._state[key]

    def state_dict(self) -> dict[str, Tensor]:
        """Flat tensors; `count` as an int64 scalar."""
        return {**self._state, "count": torch.tensor(self.count)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.count = int(state["count"])
        self._state = {name: tensor.clone() for name, tensor in state.items() if name != "count"}
