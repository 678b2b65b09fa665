"""The Transformer of think and perform on packed weights: fused kernels between cuBLAS products, K and V in pages.

The residual stream is float32. A pass writes its own K and V to `Pass.k` and `Pass.v`; attention reads them and the
pool in place. Sharding over ranks enters at two points only (`Exchange`): before and after attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..kernels import fused
from ..kernels.fused import Modulation
from ..kernels.history_index import HistoryIndex
from ..kernels.paged_attention import paged_attention
from .weights import BackboneWeights, LayerWeights, Matrix


class Exchange(Protocol):
    """How tokens that are spread over ranks become heads that are spread over ranks, and back."""

    ranks: int
    video: slice  # the video tokens of this rank

    def to_heads(self, qkv: Tensor) -> Tensor:
        """[B, T of this rank, H + 2 G, D] -> [B, all T, (H + 2 G) / N, D]: this rank's heads of every token."""
        ...

    def to_tokens(self, out: Tensor) -> Tensor:
        """[B, all T, H / N, D] -> [B, T of this rank, H, D]."""
        ...

    def gather(self, video: Tensor) -> Tensor:
        """[B, video tokens of this rank, c] -> [B, all video tokens, c]."""
        ...


@dataclass(frozen=True)
class History:
    """What a pass sees of earlier units: pools [L, pages, page, G, D] and where each row's tokens lie in them.

    `rows` int32 [B]: the row of the index that each batch row uses; None: its own.
    """

    k_pool: Tensor
    v_pool: Tensor
    index: HistoryIndex
    rows: Tensor | None = None


def linear(x: Tensor, weight: Matrix) -> Tensor:
    """x [B, T, in] @ weight [out, in] -> [B, T, out] in the precision of x.

    With a float8 matrix each token is rounded to float8 with a scale of its own; sums are of higher precision.
    """
    if isinstance(weight, Tensor):
        return torch.nn.functional.linear(x, weight)
    rows, scale = fused.to_fp8(x.flatten(0, 1))
    if x.is_cuda:  # cuBLASLt wants the second matrix column by column, and scales as a column and a row
        out = torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
            rows, weight.values.t(), scale[:, None], weight.scale[None], out_dtype=x.dtype, use_fast_accum=True
        )
    else:
        out = (rows.float() @ weight.values.float().t() * scale[:, None] * weight.scale).to(x.dtype)
    return out.unflatten(0, x.shape[:2])


def exact_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [B, in] @ weight [out, in] -> float32 [B, out] with nothing rounded after the sum."""
    if x.is_cuda and x.dtype != torch.float32:
        return torch.mm(x, weight.t(), out_dtype=torch.float32)
    return x.float() @ weight.float().t()


class Backbone:
    """Layers and final norm over one rank's share of the heads (all of them without an exchange)."""

    def __init__(self, weights: BackboneWeights, exchange: Exchange | None = None) -> None:
        b, ranks = weights.config.backbone, exchange.ranks if exchange is not None else 1
        self.config, self.weights = b, weights
        self.exchange = exchange
        self.heads, self.groups = b.heads // ranks, b.kv_heads // ranks

    def new_kv(self, batch: int, tokens: int, layers: int | None = None) -> tuple[Tensor, Tensor]:
        """Room for the K and V that a pass makes, [layers, B, T, G, D]; all layers if None."""
        shape = (layers or self.config.layers, batch, tokens, self.groups, self.config.head_dim)
        w = self.weights
        return torch.empty(shape, dtype=w.dtype, device=w.device), torch.empty(shape, dtype=w.dtype, device=w.device)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        history: History,
        k_new: Tensor,
        v_new: Tensor,
        mask: Tensor | None = None,
        modulation: Modulation | None = None,
        out_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """x float32 [B, T, d] (changed in place) -> normalised hidden states [B, T, d] in `out_dtype` (None: the
        engine's precision).

        cos, sin float32 [B, T, D / 2] of the tokens that attention sees; mask bool [B, T, T] or None (all see all);
        k_new, v_new [L, B, T, G, D] or [1, ...] if nobody needs them afterwards.
        """
        w, eps, m = self.weights, self.config.rms_eps, Modulation
        last = len(w.layers) - 1
        h = fused.add_norm(x, None, w.layers[0].norm_in, eps, w.dtype, modulation, None, (0, m.SCALE_A, m.SHIFT_A))
        for i, layer in enumerate(w.layers):
            own = min(i, k_new.shape[0] - 1)
            out = self._attend(h, layer, i, cos, sin, history, k_new[own], v_new[own], mask)
            h = fused.add_norm(
                x, out, layer.norm_post, eps, w.dtype, modulation, (i, m.GATE_A), (i, m.SCALE_M, m.SHIFT_M)
            )
            out = linear(fused.silu_mul(linear(h, layer.gate_up)), layer.down)
            following = w["norm"] if i == last else w.layers[i + 1].norm_in
            entry = None if i == last else (i + 1, m.SCALE_A, m.SHIFT_A)
            dtype = (out_dtype or w.dtype) if i == last else w.dtype
            h = fused.add_norm(x, out, following, eps, dtype, modulation, (i, m.GATE_M), entry)
        return h

    def _attend(
        self,
        h: Tensor,
        layer: LayerWeights,
        i: int,
        cos: Tensor,
        sin: Tensor,
        history: History,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        size, eps = self.config.head_dim, self.config.rms_eps
        qkv = linear(h, layer.qkv).unflatten(2, (-1, size))
        if self.exchange is not None:
            qkv = self.exchange.to_heads(qkv)
        q = torch.empty(*k.shape[:2], self.heads, size, dtype=k.dtype, device=k.device)
        fused.norm_rope(qkv, layer.q_norm, layer.k_norm, eps, cos, sin, q, k, v)
        out = paged_attention(q, k, v, history.k_pool[i], history.v_pool[i], history.index, mask, history.rows)
        if self.exchange is not None:
            out = self.exchange.to_tokens(out)
        return linear(out.flatten(2), layer.out)


def modulation_of(weights: BackboneWeights, tau: Tensor) -> Modulation:
    """Shifts, scales and gates of tau float32 [B] in [0, 1]. The sinusoids of 1000 tau need float32."""
    angle = tau.unsqueeze(-1) * weights["tau.frequency"]
    waves = torch.cat((torch.cos(angle), torch.sin(angle)), dim=-1)
    hidden = torch.nn.functional.silu(
        torch.nn.functional.linear(waves, weights["tau.embed.weight"], weights["tau.embed.bias"])
    )
    shared = exact_linear(hidden.to(weights.dtype), weights["tau.project.weight"]) + weights["tau.project.bias"]
    return Modulation(shared.unflatten(-1, (6, -1)).contiguous(), weights["tau.tables"])
