"""The performer over N ranks (v0.2): video tokens and KV heads are sharded, audio tokens are not.

Between layers every rank holds its share of the video tokens and all audio tokens; inside attention it holds all tokens
and its share of the heads, whose K and V are all that its own pool ever contains ("pre-sharded local cache"). Two
all-to-all exchanges a layer turn one into the other (DeepSpeed-Ulysses, Jacobs et al. 2023, arXiv 2309.14509). Weights
are replicated. Works on any torch.distributed backend: NCCL on GPUs, gloo on CPUs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from engine_builder.config import BackboneConfig, ModelConfig

from . import passes
from .backbone import Backbone, History
from .weights import BackboneWeights

Group = dist.ProcessGroup


@dataclass(frozen=True)
class Shard:
    """What rank `rank` of `ranks` holds. Video tokens are dealt in contiguous pieces that differ by one at most."""

    config: ModelConfig
    rank: int
    ranks: int

    def __post_init__(self) -> None:
        b = self.config.backbone
        if not 0 <= self.rank < self.ranks:
            raise ValueError(f"rank: expected 0 to {self.ranks - 1}, got {self.rank}")
        if b.kv_heads % self.ranks:
            raise ValueError(f"ranks: expected a divisor of kv_heads ({b.kv_heads}), got {self.ranks}")

    @property
    def video_counts(self) -> list[int]:
        """Video tokens of every rank."""
        each, rest = divmod(self.config.video.tokens, self.ranks)
        return [each + (r < rest) for r in range(self.ranks)]

    @property
    def video(self) -> slice:
        """The video tokens of this rank."""
        start = sum(self.video_counts[: self.rank])
        return slice(start, start + self.video_counts[self.rank])

    @property
    def kv_heads(self) -> slice:
        """The KV heads of this rank."""
        return self.kv_heads_of(self.rank)

    def kv_heads_of(self, rank: int) -> slice:
        each = self.config.backbone.kv_heads // self.ranks
        return slice(rank * each, (rank + 1) * each)


class Ulysses:
    """`backbone.Exchange` over a process group. Tokens of a pass are [video of this rank | audio]."""

    def __init__(self, shard: Shard, group: Group, device: torch.device | str) -> None:
        b: BackboneConfig = shard.config.backbone
        self._shard, self._group, self._ranks = shard, group, shard.ranks
        heads, groups = torch.arange(b.heads + 2 * b.kv_heads).split([b.heads, b.kv_heads, b.kv_heads])[:2]
        keys, values = groups, groups + b.kv_heads
        parts = [part.chunk(self._ranks) for part in (heads, keys, values)]
        # Heads of rank 0 (its q, k, v), then of rank 1, ...
        self._order = torch.cat([torch.cat([part[r] for part in parts]) for r in range(self._ranks)]).to(device)

    def to_heads(self, qkv: Tensor) -> Tensor:
        """[B, own video + audio, H + 2 G, D] -> [B, all video + audio, (H + 2 G) / N, D]."""
        counts = self._shard.video_counts
        mine = counts[self._shard.rank]
        by_rank = qkv.index_select(2, self._order).unflatten(2, (self._ranks, -1))  # [B, T, N, h, D]
        video, audio = by_rank[:, :mine], by_rank[:, mine:, self._shard.rank]
        shape = (qkv.shape[0], by_rank.shape[3], qkv.shape[3])
        received = self._all_to_all(
            [video[:, :, r] for r in range(self._ranks)], [(shape[0], count, *shape[1:]) for count in counts]
        )
        return torch.cat((*received, audio), dim=1)

    def to_tokens(self, out: Tensor) -> Tensor:
        """[B, all video + audio, H / N, D] -> [B, own video + audio, H, D]."""
        *video, audio = out.split([*self._shard.video_counts, self._shard.config.audio.tokens], dim=1)
        pieces = [torch.cat((piece, audio), dim=1) for piece in video]  # every rank needs all audio
        mine = (out.shape[0], pieces[self._shard.rank].shape[1], *out.shape[2:])
        return torch.cat(self._all_to_all(pieces, [mine] * self._ranks), dim=2)

    def _all_to_all(self, pieces: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Sends pieces[r] to rank r; returns what every rank sent here, of the given shapes."""
        source = torch.cat([piece.reshape(-1) for piece in pieces])
        sizes = [torch.Size(shape).numel() for shape in shapes]
        target = torch.empty(sum(sizes), dtype=source.dtype, device=source.device)
        dist.all_to_all_single(target, source, sizes, [piece.numel() for piece in pieces], group=self._group)
        return [flat.view(shape) for flat, shape in zip(target.split(sizes), shapes, strict=True)]


class PerformerRank:
    """One rank of a performer group. All ranks make the same calls in the same order.

    The pool is local: [L, pages, page, G / N, D], under page ids that all ranks share.
    """

    def __init__(self, weights: BackboneWeights, group: Group) -> None:
        self.group, self.config = group, weights.config
        self.shard = Shard(weights.config, dist.get_rank(group), dist.get_world_size(group))
        self._backbone = Backbone(weights, Ulysses(self.shard, group, weights.device), self.shard.ranks)

    def new_pool(self, num_pages: int, page_tokens: int) -> tuple[Tensor, Tensor]:
        """A zeroed local pool: k and v."""
        b, w = self.config.backbone, self._backbone.weights
        shape = (b.layers, num_pages, page_tokens, self._backbone.groups, b.head_dim)
        return torch.zeros(shape, dtype=w.dtype, device=w.device), torch.zeros(shape, dtype=w.dtype, device=w.device)

    def velocity(
        self, history: History, x_video: Tensor, x_audio: Tensor, tau: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Velocity of this rank's video tokens [B, own, c_v] and of all audio tokens [B, n_a, c_a].

        cos, sin [B, n_v + n_a, D / 2] are those of all tokens.
        """
        return passes.perform(self._backbone, history, x_video, x_audio, tau, cos, sin, self.shard.video)

    def solve(
        self, history: History, x_video: Tensor, x_audio: Tensor, taus: Sequence[float], cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        """All Euler steps from noise (own video tokens, all audio tokens) to clean latents; video gathered from all."""
        for tau, following in itertools.pairwise(taus):
            at = torch.full((x_audio.shape[0],), tau, device=x_audio.device)
            video, audio = self.velocity(history, x_video, x_audio, at, cos, sin)
            x_video, x_audio = x_video + (following - tau) * video, x_audio + (following - tau) * audio
        return self._gather(x_video), x_audio

    def _gather(self, video: Tensor) -> Tensor:
        """[B, own, c] of every rank -> [B, n_v, c] on every rank."""
        counts = self.shard.video_counts
        padded = torch.zeros(video.shape[0], max(counts), video.shape[2], device=video.device)  # equal sizes for all
        padded[:, : video.shape[1]] = video
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat([part[:, :count] for part, count in zip(parts, counts, strict=True)], dim=1)

    def receive_kv(self, k_pool: Tensor, v_pool: Tensor, places: Tensor, source: int) -> None:
        """Takes this rank's heads of new K and V from global rank `source` into its pool, at places int64 [n]."""
        b, w = self.config.backbone, self._backbone.weights
        shape = (2, b.layers, len(places), self._backbone.groups, b.head_dim)
        new = torch.empty(shape, dtype=w.dtype, device=w.device)
        dist.recv(new, src=source)
        store_kv(k_pool, v_pool, places, new)


def send_kv(k_new: Tensor, v_new: Tensor, shard: Shard, target: int) -> None:
    """The thinker's side of `receive_kv`: k_new, v_new [L, n, G, D] of the committed tokens, cut for `shard`."""
    dist.send(cut_kv(k_new, v_new, shard), dst=target)


def cut_kv(k_new: Tensor, v_new: Tensor, shard: Shard) -> Tensor:
    """[2, L, n, G / N, D]: the heads that a rank keeps."""
    return torch.stack((k_new[:, :, shard.kv_heads], v_new[:, :, shard.kv_heads])).contiguous()


def store_kv(k_pool: Tensor, v_pool: Tensor, places: Tensor, new: Tensor) -> None:
    """Writes new [2, L, n, g, D] to a pool at places int64 [n] (page * page_tokens + offset)."""
    for pool, values in zip((k_pool, v_pool), new, strict=True):
        pool.flatten(1, 2).index_copy_(1, places, values)
