"""The Qwen3-shaped Transformer that perceives, thinks and performs with one set of weights.

Shapes: B rows (sessions), T tokens of this pass, S visible history tokens, d hidden size, H query heads, G key/value
heads, D head size. Names follow Hugging Face's `Qwen3ForCausalLM`, so that its tensors load without renaming.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..config import BackboneConfig

KV = tuple[Tensor, Tensor]


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis (Zhang & Sennrich 2019), in float32 like Qwen3."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE in the half-split layout of Qwen3. x [B, T, heads, D]; cos, sin [B, T, D / 2]."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Grouped-query attention. q [B, T, H, D]; k, v [B, S, G, D]; mask [B, T, S], bool or added to the
    scores -> [B, T, H * D].

    Exported as ONNX's own Attention operator (opset 23), which TensorRT maps to its fused kernels. Every query must
    see at least one key (its own), otherwise the softmax is undefined.
    """
    out = nn.functional.scaled_dot_product_attention(
        q.permute(0, 2, 1, 3),
        k.permute(0, 2, 1, 3),
        v.permute(0, 2, 1, 3),
        attn_mask=mask.unsqueeze(1),
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.permute(0, 2, 1, 3).flatten(2)


class Attention(nn.Module):
    """Attention with QK-norm over [history | own tokens]."""

    def __init__(self, c: BackboneConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = c.heads, c.kv_heads, c.head_dim
        self.q_proj = nn.Linear(c.hidden_size, c.heads * c.head_dim, bias=False)
        self.k_proj = nn.Linear(c.hidden_size, c.kv_heads * c.head_dim, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, c.kv_heads * c.head_dim, bias=False)
        self.o_proj = nn.Linear(c.heads * c.head_dim, c.hidden_size, bias=False)
        self.q_norm = RMSNorm(c.head_dim, c.rms_eps)
        self.k_norm = RMSNorm(c.head_dim, c.rms_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, history: KV | None) -> tuple[Tensor, KV]:
        """Returns the output [B, T, d] and this pass's own rotated K and V [B, T, G, D]."""
        batch, tokens, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(batch, tokens, self.heads, self.head_dim))
        k = self.k_norm(self.k_proj(x).view(batch, tokens, self.kv_heads, self.head_dim))
        v = self.v_proj(x).view(batch, tokens, self.kv_heads, self.head_dim)
        # Attention runs in the precision of its matrices (see `targets.precision`); by default all is float32.
        q, k, v = (t.to(self.o_proj.weight.dtype) for t in (rotate(q, cos, sin), rotate(k, cos, sin), v))
        if history is None:
            return self.o_proj(attend(q, k, v, mask)), (k, v)
        keys, values = torch.cat((history[0], k), dim=1), torch.cat((history[1], v), dim=1)
        return self.o_proj(attend(q, keys, values, mask)), (k, v)


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, c: BackboneConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Pre-norm Transformer layer. `modulation` [B, M, 6, d] shifts, scales and gates the last M tokens, the noisy
    ones (adaLN-single, PixArt-alpha, Chen et al. 2023); M = 1 serves all tokens alike. Without it, and with zeros,
    this is the plain Qwen3 layer."""

    def __init__(self, c: BackboneConfig) -> None:
        super().__init__()
        self.self_attn = Attention(c)
        self.mlp = MLP(c)
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_eps)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, history: KV | None, modulation: Tensor | None
    ) -> tuple[Tensor, KV]:
        if modulation is None:
            out, own = self.self_attn(self.input_layernorm(x), cos, sin, mask, history)
            x = x + out
            return x + self.mlp(self.post_attention_layernorm(x)), own
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.unbind(2)
        h = modulate(self.input_layernorm(x), scale_a, shift_a)
        out, own = self.self_attn(h, cos, sin, mask, history)
        x = x + modulate(out, gate_a)
        h = modulate(self.post_attention_layernorm(x), scale_m, shift_m)
        return x + modulate(self.mlp(h), gate_m), own


def modulate(x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    """x * (1 + scale) + shift on the last M tokens of x [B, T, d]; scale, shift [B, M, d], or M = 1 for all."""
    tail = x if scale.shape[1] == 1 else x[:, -scale.shape[1] :]
    changed = tail * (1 + scale) if shift is None else tail * (1 + scale) + shift
    return changed if tail.shape[1] == x.shape[1] else torch.cat((x[:, : -scale.shape[1]], changed), dim=1)


class Backbone(nn.Module):
    """Embedding table, layers and final norm. Tensor names: `embed_tokens`, `layers.N...`, `norm`."""

    def __init__(self, c: BackboneConfig, vocab_size: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.norm = RMSNorm(c.hidden_size, c.rms_eps)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor,
        histories: Sequence[KV] | None = None,
        modulations: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, d]; mask bool [B, T, S + T]; histories: per layer (K, V) [B, S, G, D].

        Returns the normalised hidden states [B, T, d] and the pass's own K, V [L, B, T, G, D].
        """
        own: list[KV] = []
        for i, layer in enumerate(self.layers):
            x, kv = layer(
                x,
                cos,
                sin,
                mask,
                None if histories is None else histories[i],
                None if modulations is None else modulations[i],
            )
            own.append(kv)
        return self.norm(x), torch.stack([k for k, _ in own]), torch.stack([v for _, v in own])
