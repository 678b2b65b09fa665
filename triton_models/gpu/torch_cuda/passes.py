"""Think and perform as functions of tensors on one device: the same inputs and outputs as the exported step graphs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear, silu

from .backbone import Backbone, History, exact_linear, modulation_of


@dataclass(frozen=True)
class Thought:
    """logits float32 [B, V] of the last token; k, v [L, B, T, G, D]; finite uint8 [B]: 1 where all of them are."""

    logits: Tensor
    k: Tensor
    v: Tensor
    finite: Tensor


def think(
    backbone: Backbone,
    history: History,
    z_video: Tensor,
    z_audio: Tensor,
    e_video: Tensor,
    e_audio: Tensor,
    ids: Tensor,
    rope_cos: Tensor,
    rope_sin: Tensor,
    block_mask: Tensor | None,
    kv: tuple[Tensor, Tensor] | None = None,
) -> Thought:
    """One think pass; parts that it does not have come with zero tokens. block_mask None: everybody sees everybody.

    kv: where K and V [L, B, T, G, D] go; None: to new memory.
    """
    w = backbone.weights
    x = torch.cat(
        (
            linear(z_video, w["video_in.weight"], w["video_in.bias"]) + w["video_position"][: z_video.shape[1]],
            linear(z_audio, w["audio_in.weight"], w["audio_in.bias"]) + w["audio_position"][: z_audio.shape[1]],
            e_video,
            e_audio,
            embedding(ids, w["embed"]).float(),
        ),
        dim=1,
    )
    k, v = kv or backbone.new_kv(x.shape[0], x.shape[1])
    hidden = backbone.forward(x, rope_cos, rope_sin, history, k, v, block_mask)
    logits = exact_linear(hidden[:, -1], w.head)
    # The largest magnitude carries every NaN and infinity: one number a row instead of a copy of K and V.
    largest = torch.linalg.vector_norm(k, ord=torch.inf, dim=(0, 2, 3, 4)).float()
    largest = largest + torch.linalg.vector_norm(v, ord=torch.inf, dim=(0, 2, 3, 4)).float()
    finite = torch.isfinite(largest + logits.abs().amax(dim=1))
    return Thought(logits, k, v, finite.to(torch.uint8))


def perform(
    backbone: Backbone,
    history: History,
    x_video: Tensor,
    x_audio: Tensor,
    tau: Tensor,
    rope_cos: Tensor,
    rope_sin: Tensor,
) -> tuple[Tensor, Tensor]:
    """One evaluation of the velocity field: x_video [B, n_v, c_v], x_audio [B, n_a, c_a], tau [B], RoPE tables
    [B, n, D / 2], all float32.

    Every rank of a group gives and gets all of it; in between it holds its own video tokens.
    """
    w, exchange = backbone.weights, backbone.exchange
    own = slice(None) if exchange is None else exchange.video
    x_video = x_video[:, own]
    from_video = linear(x_video, w["video_in.weight"], w["video_in.bias"]) + w["video_position"][own]
    from_audio = linear(x_audio, w["audio_in.weight"], w["audio_in.bias"]) + w["audio_position"]
    x = torch.cat((from_video, from_audio), dim=1)
    # K and V of noisy tokens are read once, by the layer that made them: all layers share one buffer.
    k, v = backbone.new_kv(x.shape[0], rope_cos.shape[1], layers=1)
    hidden = backbone.forward(
        x, rope_cos, rope_sin, history, k, v, None, modulation_of(w, tau), out_dtype=torch.float32
    )
    n = x_video.shape[1]
    clean_video = linear(hidden[:, :n], w["video_out.weight"], w["video_out.bias"])
    clean_audio = linear(hidden[:, n:], w["audio_out.weight"], w["audio_out.bias"])
    if w.config.audio.head_channels:
        more = silu(linear(hidden[:, n:], w["audio_hidden.up_proj.weight"], w["audio_hidden.up_proj.bias"]))
        clean_audio = clean_audio + linear(more, w["audio_hidden.down_proj.weight"])
    path = tau.view(-1, 1, 1)
    velocity_video = (x_video - clean_video) / path
    velocity_video = velocity_video if exchange is None else exchange.gather(velocity_video)
    return velocity_video, (x_audio - clean_audio) / path
