"""Strong types for GPU engines: matrices, K and V in bfloat16 or float16, everything between them in float32.

Norms, RoPE, softmax, residual stream, tau, solver and logits stay float32, as in the torch-cuda executor. Casts stand
at the matrix products only, so a strongly typed network says exactly which product runs on which units.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..model.duplex import DuplexModel

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_of(precision: str) -> torch.dtype:
    """The type of a precision's matrices; ValueError lists the known ones."""
    if precision not in PRECISIONS:
        raise ValueError(f"--precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    return PRECISIONS[precision]


class CastLinear(nn.Module):
    """y = x @ weight^T + bias with the product in the precision of `weight` [out, in] and y in float32."""

    def __init__(self, source: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(source.weight.detach().to(dtype), requires_grad=False)
        self.bias = source.bias

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.linear(x.to(self.weight.dtype), self.weight).float()
        return y if self.bias is None else y + self.bias


def set_precision(model: DuplexModel, precision: str) -> DuplexModel:
    """Changes `model` in place, and returns it: backbone, heads and the projection of tau. Codecs stay as they are.

    Raises ValueError for an unknown precision.
    """
    dtype = dtype_of(precision)
    if dtype == torch.float32:
        return model
    _cast_linears(model.model, dtype)
    model.modulation.project = CastLinear(model.modulation.project, dtype)  # type: ignore[assignment]
    if not model.config.backbone.tied_head:
        model.lm_head = CastLinear(model.lm_head, dtype)  # type: ignore[assignment]
    table = model.model.embed_tokens
    table.weight = nn.Parameter(table.weight.detach().to(dtype), requires_grad=False)
    model.kv_dtype = dtype
    return model


def _cast_linears(module: nn.Module, dtype: torch.dtype) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, CastLinear(child, dtype))
        else:
            _cast_linears(child, dtype)
