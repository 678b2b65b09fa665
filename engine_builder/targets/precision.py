"""Strong types for GPU engines: matrices, K and V in bfloat16, everything between them in float32.

fp8 is bfloat16 but for the matrices of the layers, and what they are multiplied by: those are float8 (e4m3), with a
scale for each row of a matrix and each token, so that the largest of a row is the largest there is.

There is no float16: what SwiGLU multiplies comes to 27,000 in the tutor's last layer, a factor of 2.4 below infinity,
and in some conversations beyond it.

Norms, RoPE, softmax, residual stream, tau, solver and logits stay float32, as in the torch-cuda executor. Casts stand
at the matrix products only, so a strongly typed network says exactly which product runs on which units.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..model.duplex import DuplexModel

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "fp8": torch.bfloat16}
FP8 = torch.float8_e4m3fn
FP8_LARGEST = 448.0
SMALLEST_ROW = 1e-12  # a row of zeros has a scale too


def dtype_of(precision: str) -> torch.dtype:
    """The type of a precision's K and V, and of its matrices (but see fp8); ValueError lists the known ones."""
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


def to_fp8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[..., n] -> float8 of the same shape and scales float32 [...]: a row is float8 times its scale."""
    rows = rows.detach().float()
    scale = rows.abs().amax(-1).clamp_min(SMALLEST_ROW) / FP8_LARGEST
    return (rows / scale.unsqueeze(-1)).to(FP8), scale


class Fp8Linear(nn.Module):
    """What the FP8 product of a GPU gives, on any device: rows of both sides are rounded, sums are float32."""

    def __init__(self, source: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        values, scale = to_fp8(source.weight)
        # Whoever asks what the matrices are made of (attention does) hears the type of what lies between them.
        self.weight, self.scale = (nn.Parameter(t, requires_grad=False) for t in (values.to(dtype), scale))
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        values, scale = to_fp8(x.to(self.dtype))
        y = nn.functional.linear(values.float(), self.weight.float()) * self.scale * scale.unsqueeze(-1)
        return y.to(self.dtype).float()


def set_precision(model: DuplexModel, precision: str) -> DuplexModel:
    """Changes `model` in place, and returns it: backbone, heads and the projection of tau. Codecs stay as they are.

    Raises ValueError for an unknown precision.
    """
    dtype = dtype_of(precision)
    if dtype == torch.float32:
        return model
    cast_linears(model.model, dtype, Fp8Linear if precision == "fp8" else CastLinear)
    model.modulation.project = CastLinear(model.modulation.project, dtype)  # type: ignore[assignment]
    if not model.config.backbone.tied_head:
        model.lm_head = CastLinear(model.lm_head, dtype)  # type: ignore[assignment]
    table = model.model.embed_tokens
    table.weight = nn.Parameter(table.weight.detach().to(dtype), requires_grad=False)
    model.kv_dtype = dtype
    return model


def cast_linears(module: nn.Module, dtype: torch.dtype, kind: type[CastLinear] | type[Fp8Linear]) -> None:
    """Changes every linear layer under `module` into one of `kind`."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, kind(child, dtype))
        else:
            cast_linears(child, dtype, kind)
