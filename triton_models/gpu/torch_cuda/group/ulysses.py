"""The performer over N ranks (v0.2): video tokens and KV heads are sharded, audio tokens are not.

Between layers every rank holds its share of the video tokens and all audio tokens; inside attention it holds all tokens
and its share of the heads, whose K and V are all that its own pool ever contains ("pre-sharded local cache"). Two
all-to-all exchanges a layer turn one into the other (DeepSpeed-Ulysses, Jacobs et al. 2023, arXiv 2309.14509). Weights
are replicated. Works on any torch.distributed backend: NCCL on GPUs, gloo on CPUs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from engine_builder.config import ModelConfig

from .commands import WAIT_SECONDS

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


def join(place: torch.device, store: int, rank: int, ranks: int) -> Group:
    """Meets the other ranks at the file of descriptor `store`; what they say to each other stays on this machine."""
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "nccl" if place.type == "cuda" else "gloo",
        store=dist.FileStore(f"/proc/self/fd/{store}", ranks),  # pyright: ignore[reportPrivateImportUsage]
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=WAIT_SECONDS),
        device_id=place if place.type == "cuda" else None,
    )
    assert dist.group.WORLD is not None
    return dist.group.WORLD


class Ulysses:
    """`backbone.Exchange` over a process group: all ranks make the same passes in the same order.

    Tokens of a pass are [video of this rank | audio].
    """

    def __init__(self, config: ModelConfig, group: Group, device: torch.device | str) -> None:
        shard = Shard(config, dist.get_rank(group), dist.get_world_size(group))
        b = config.backbone
        self._shard, self._group, self.ranks, self.video = shard, group, shard.ranks, shard.video
        heads, groups = torch.arange(b.heads + 2 * b.kv_heads).split([b.heads, b.kv_heads, b.kv_heads])[:2]
        keys, values = groups, groups + b.kv_heads
        parts = [part.chunk(self.ranks) for part in (heads, keys, values)]
        # Heads of rank 0 (its q, k, v), then of rank 1, ...
        self._order = torch.cat([torch.cat([part[r] for part in parts]) for r in range(self.ranks)]).to(device)

    def to_heads(self, qkv: Tensor) -> Tensor:
        """[B, own video + audio, H + 2 G, D] -> [B, all video + audio, (H + 2 G) / N, D]."""
        counts = self._shard.video_counts
        mine = counts[self._shard.rank]
        by_rank = qkv.index_select(2, self._order).unflatten(2, (self.ranks, -1))  # [B, T, N, h, D]
        video, audio = by_rank[:, :mine], by_rank[:, mine:, self._shard.rank]
        shape = (qkv.shape[0], by_rank.shape[3], qkv.shape[3])
        received = self._all_to_all(
            [video[:, :, r] for r in range(self.ranks)], [(shape[0], count, *shape[1:]) for count in counts]
        )
        return torch.cat((*received, audio), dim=1)

    def to_tokens(self, out: Tensor) -> Tensor:
        """[B, all video + audio, H / N, D] -> [B, own video + audio, H, D]."""
        *video, audio = out.split([*self._shard.video_counts, self._shard.config.audio.tokens], dim=1)
        pieces = [torch.cat((piece, audio), dim=1) for piece in video]  # every rank needs all audio
        mine = (out.shape[0], pieces[self._shard.rank].shape[1], *out.shape[2:])
        return torch.cat(self._all_to_all(pieces, [mine] * self.ranks), dim=2)

    def gather(self, video: Tensor) -> Tensor:
        """[B, own video, c] of every rank -> [B, all video, c] on every rank."""
        counts = self._shard.video_counts
        padded = torch.zeros(video.shape[0], max(counts), video.shape[2], device=video.device)  # equal sizes for all
        padded[:, : video.shape[1]] = video
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group=self._group)
        return torch.cat([part[:, :count] for part, count in zip(parts, counts, strict=True)], dim=1)

    def _all_to_all(self, pieces: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Sends pieces[r] to rank r; returns what every rank sent here, of the given shapes."""
        source = torch.cat([piece.reshape(-1) for piece in pieces])
        sizes = [torch.Size(shape).numel() for shape in shapes]
        target = torch.empty(sum(sizes), dtype=source.dtype, device=source.device)
        dist.all_to_all_single(target, source, sizes, [piece.numel() for piece in pieces], group=self._group)
        return [flat.view(shape) for flat, shape in zip(target.split(sizes), shapes, strict=True)]
