"""What a step must do at least: floating-point operations and bytes of device memory, counted from the model's shapes.

A multiply-add is two operations. Bytes: every weight, the visible K and V and the step's own inputs and outputs once.
Activations between kernels are not counted, so shares of the copy bandwidth are a little understated. The codecs count
in float32, without the tensor cores: their arithmetic is held against that rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from engine_builder.config import ModelConfig
from engine_builder.model.codec_work import codec_works

ITEM_BYTES = 2  # bf16: weights of the backbone, K and V
FP8_GAIN = 2  # of the matrix units over bf16, and of the bytes of a matrix


@dataclass(frozen=True)
class Ceilings:
    """Measured on the same device in the same run."""

    copy_gbs: float  # GB/s, bytes read plus bytes written
    matmul_tflops: float  # bf16
    float32_tflops: float  # a product of float32 that rounds nothing

    def tflops(self, work: Work) -> float:
        """The rate that work of its precision could have."""
        return self.float32_tflops if work.float32 else self.matmul_tflops


@dataclass(frozen=True)
class Work:
    """`fp8_flops`: those of `flops` that the matrix units do at FP8's rate."""

    flops: float
    bytes: float
    float32: bool = False
    fp8_flops: float = 0.0

    def floor_ms(self, ceilings: Ceilings) -> float:
        """No version runs faster: the larger of arithmetic at the matmul ceiling and bytes at the copy ceiling."""
        flops = self.flops - self.fp8_flops * (1 - 1 / FP8_GAIN)
        return max(flops / (ceilings.tflops(self) * 1e9), self.bytes / (ceilings.copy_gbs * 1e6))


def history_tokens(config: ModelConfig, seconds: float, slots: int) -> int:
    """Cached tokens of a window: a unit commits its block without text, and the slots that were fed."""
    committed = config.latent_tokens + config.video.perceive_tokens + config.audio.perceive_tokens + 1 + slots
    return round(seconds * 1000 / 160) * committed


def step_work(config: ModelConfig, step: str, batch: int, history: int, fp8: bool = False) -> Work:
    """One call of a step of `costs.STEPS` with `batch` rows over `history` cached tokens a row. `fp8`: the matrices of
    the layers are float8; attention, K and V, language head and tau stay bf16."""
    if step in ("perceive", "render"):
        work = _codec_works(config)[step]
        return Work(batch * work.flops, work.bytes(batch), float32=True)
    tokens = {"think": config.block_tokens, "slot": 1, "perform": config.latent_tokens}[step]
    b = config.backbone
    d, heads = b.hidden_size, b.heads * b.head_dim
    layer = d * (heads + 2 * b.kv_heads * b.head_dim) + heads * d + 3 * d * b.intermediate_size
    flops = batch * b.layers * (2 * tokens * layer + 4 * tokens * (history + tokens) * heads)
    size = ITEM_BYTES * b.layers * (layer + 2 * batch * history * b.kv_heads * b.head_dim)
    if step == "perform":
        tau = 6 * d * d
        flops += 2 * batch * tau
        size += ITEM_BYTES * tau
    else:
        head = config.language.vocab_size * d
        flops += 2 * batch * head
        size += ITEM_BYTES * head
        # K and V of the pass are written.
        size += ITEM_BYTES * 2 * b.layers * batch * tokens * b.kv_heads * b.head_dim
    if not fp8:
        return Work(flops, size)
    saved = ITEM_BYTES * b.layers * layer * (1 - 1 / FP8_GAIN)
    return Work(flops, size - saved, fp8_flops=batch * b.layers * 2 * tokens * layer)


def attention_work(config: ModelConfig, tokens: int, batch: int, history: int) -> Work:
    """The attention of one layer alone."""
    b = config.backbone
    flops = 4 * batch * tokens * (history + tokens) * b.heads * b.head_dim
    size = ITEM_BYTES * batch * b.head_dim * (2 * (history + tokens) * b.kv_heads + 2 * tokens * b.heads)
    return Work(flops, size)


_codec_works = cache(codec_works)
