"""Our attention and the matrix products beside the best library kernels of this card. Writes OUT/anchors.csv by rows.

    python anchors.py OUT [--smoke]

attention   the noisy tokens of v0.1-8b over 8 s of history in pages of 16, rows 1 and 4: ours in several block shapes;
            FlashAttention-2 and cuDNN of PyTorch on contiguous K and V, the heads of a group folded into the queries;
            cuDNN's paged attention, if its frontend is there
product     the four matrices of a layer at the token counts that occur, bf16 (cuBLASLt) and FP8 (`_scaled_mm`, a scale
            a row); at one token they are bound by memory
"""

from __future__ import annotations

import csv
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_plan import Clock, Plan, config_of, say
from gpu_tiling import attention_alone
from gpu_work import attention_work, history_tokens
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear, scaled_dot_product_attention

Call = Callable[[], Any]
REPEATS = 15
L2_BYTES = 160 << 20  # of weights before the first comes again: more than any L2 keeps


class Anchors:
    """The rows so far; each is written when it is known."""

    def __init__(self, out: Path, smoke: bool) -> None:
        self.smoke = smoke
        self.device = torch.device("cpu" if smoke else "cuda:0")
        self.dtype = torch.float32 if smoke else torch.bfloat16
        self.config = config_of("tiny" if smoke else "v0.1-8b", smoke)
        self.plan = replace(Plan.smoke(), window=0.5 if smoke else 8.0, repeats=1 if smoke else REPEATS)
        self.clock = Clock(self.device, self.plan.repeats)
        self.normal = partial(torch.randn, device=self.device, dtype=self.dtype)
        self.rows: list[dict[str, Any]] = []
        self._file = out / "anchors.csv"

    def note(self, what: str, variant: str, batch: int, make: Callable[[], Call], flops: float, size: float) -> None:
        """Times what `make` returns; what it cannot do is written down."""
        row: dict[str, Any] = dict.fromkeys(("what", "variant", "batch", "ms", "tflops", "gbs", "note"), "")
        row |= {"what": what, "variant": variant, "batch": batch}
        try:
            ms = self.clock.device_ms(make())
            row |= {"ms": f"{ms:.4f}", "tflops": f"{flops / ms / 1e9:.1f}", "gbs": f"{size / ms / 1e6:.1f}"}
        except Exception as error:  # libraries raise types of their own
            row["note"] = f"{type(error).__name__}: {str(error)[:120]!r}"
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        self.rows.append(row)
        say(f"{what} {variant} x{batch}: {row['ms']} ms, {row['tflops']} TFLOP/s {row['note']}")
        with self._file.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerows(self.rows)

    def attention(self, batch: int) -> None:
        config, b = self.config, self.config.backbone
        tokens, history = config.latent_tokens, history_tokens(config, self.plan.window, 2)
        work = attention_work(config, tokens, batch, history)
        note = partial(self.note, "attention", batch=batch, flops=work.flops, size=work.bytes)
        chosen, attend = attention_alone(config, tokens, batch, self.plan, self.device, self.smoke)
        others = [] if self.smoke else [replace(chosen, keys=64), replace(chosen, rows=64, keys=64, warps=4)]
        for tiling in dict.fromkeys((chosen, *others)):
            shown = f"ours: rows {tiling.rows} keys {tiling.keys} warps {tiling.warps} stages {tiling.stages}"
            note(f"{shown} splits {tiling.splits}", make=lambda tiling=tiling: partial(attend, tiling))
        ratio, keys = b.heads // b.kv_heads, history + tokens
        q = self.normal(batch, b.kv_heads, tokens * ratio, b.head_dim)
        k, v = (self.normal(batch, keys, b.kv_heads, b.head_dim).transpose(1, 2) for _ in range(2))
        fused = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION)
        for backend in (SDPBackend.MATH,) if self.smoke else fused:
            note(f"PyTorch {backend.name.lower()}, contiguous", make=lambda one=backend: partial(sdpa, one, q, k, v))
        query = self.normal(batch, tokens, b.heads, b.head_dim)
        for page in () if self.smoke else (16, 64, 128):
            make = partial(cudnn_paged, query, b.kv_heads, page, history)
            note(f"cuDNN paged, pages of {page}", make=make)

    def products(self) -> None:
        b = self.config.backbone
        d, f, wide = b.hidden_size, b.intermediate_size, b.heads * b.head_dim
        shapes = {
            "qkv": (wide + 2 * b.kv_heads * b.head_dim, d),
            "out": (d, wide),
            "gate_up": (2 * f, d),
            "down": (d, f),
        }
        tokens = self.config.latent_tokens
        counts = (1, 5) if self.smoke else (1, 8, tokens, self.config.block_tokens, 2 * tokens, 4 * tokens, 8 * tokens)
        for name, (n, k) in shapes.items():
            copies = 1 if self.smoke else max(1, L2_BYTES // (2 * n * k))
            weights = [self.normal(n, k) for _ in range(copies)]
            for m in counts:
                x = self.normal(m, k)
                for precision, item, make in self._precisions(x, weights):
                    size = item * (n * k + m * k) + 2 * m * n
                    self.note("product", f"{name} {precision}", m, make, 2.0 * m * n * k, size)

    def _precisions(self, x: Tensor, weights: list[Tensor]) -> Iterator[tuple[str, int, Callable[[], Call]]]:
        turn = itertools.cycle(weights)
        yield "bf16", 2, lambda: lambda: linear(x, next(turn))
        if not self.smoke and x.shape[0] >= 16:
            yield "fp8, a scale a row", 1, lambda: scaled(x, weights)


def sdpa(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(backend):
        return scaled_dot_product_attention(q, k, v)


def scaled(x: Tensor, weights: list[Tensor]) -> Call:
    eight = torch.float8_e4m3fn
    rows, turn = x.to(eight), itertools.cycle([w.to(eight).t() for w in weights])
    ones = partial(torch.ones, device=x.device)
    of_rows, of_columns = ones(x.shape[0], 1), ones(1, weights[0].shape[0])
    return lambda: torch._scaled_mm(rows, next(turn), of_rows, of_columns, out_dtype=x.dtype, use_fast_accum=True)


def cudnn_paged(q: Tensor, groups: int, page: int, history: int) -> Call:
    """cuDNN's paged attention over whole pages, lengths on the device, with statistics for a merge with the own block.

    ValueError if its result is not that of the definition.
    """
    import cudnn

    batch, tokens, heads, size = q.shape
    pages = -(-history // page)
    pool, device = 1 + batch * pages, q.device
    k_pool, v_pool = (torch.randn(pool, page, groups, size, device=device, dtype=q.dtype) for _ in range(2))
    table = (1 + torch.randperm(batch * pages, device=device)).view(batch, 1, pages, 1).int()
    lengths = [torch.full((batch, 1, 1, 1), n, device=device, dtype=torch.int32) for n in (tokens, history)]
    handle = cudnn.create_handle()
    cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream().cuda_stream)
    kinds = cudnn.data_type
    graph = cudnn.pygraph(
        handle=handle,
        io_data_type=kinds.BFLOAT16,
        intermediate_data_type=kinds.FLOAT,
        compute_data_type=kinds.FLOAT,
    )

    def tensor(dim: tuple[int, ...], stride: tuple[int, ...], kind: Any = kinds.BFLOAT16) -> Any:
        return graph.tensor(dim=list(dim), stride=list(stride), data_type=kind)

    wide = (batch, heads, tokens, size), (tokens * heads * size, size, heads * size, 1)
    in_q = tensor(*wide)
    paged = (pool, groups, page, size), (page * groups * size, size, groups * size, 1)
    in_k, in_v = tensor(*paged), tensor(*paged)
    ints = [tensor(tuple(t.shape), t.stride(), kinds.INT32) for t in (*lengths, table, table)]
    out, stats = graph.sdpa(
        name="paged",
        q=in_q,
        k=in_k,
        v=in_v,
        generate_stats=True,
        attn_scale=size**-0.5,
        use_padding_mask=True,
        seq_len_q=ints[0],
        seq_len_kv=ints[1],
        use_causal_mask=False,
        paged_attention_k_table=ints[2],
        paged_attention_v_table=ints[3],
        paged_attention_max_seq_len_kv=history,
    )
    result, weight = torch.empty_like(q), torch.empty(batch, heads, tokens, 1, device=device)
    out.set_output(True).set_dim(list(wide[0])).set_stride(list(wide[1]))
    stats.set_output(True).set_dim(list(weight.shape)).set_stride(list(weight.stride())).set_data_type(kinds.FLOAT)
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    graph.check_support()
    graph.build_plans()
    space = torch.empty(max(1, graph.get_workspace_size()), device=device, dtype=torch.uint8)
    given = dict(zip((in_q, in_k, in_v, *ints), (q, k_pool, v_pool, *lengths, table, table.clone()), strict=True))
    call = partial(graph.execute, given | {out: result, stats: weight}, space, handle=handle)
    call()
    seen = table.flatten(1)[0].long()
    k, v = (p[seen].flatten(0, 1)[:history, 0].float() for p in (k_pool, v_pool))
    want = torch.softmax(q[0, 0, 0].float() @ k.T * size**-0.5, -1) @ v
    error = float((result[0, 0, 0].float() - want).norm() / want.norm())
    if not error < 2e-2:
        raise ValueError(f"the result is off by {error:.3g}")
    return call


def main() -> None:
    smoke = "--smoke" in sys.argv
    anchors = Anchors(Path(sys.argv[1]), smoke)
    with torch.no_grad():
        for batch in (1,) if smoke else (1, 4):
            anchors.attention(batch)
        anchors.products()


if __name__ == "__main__":
    main()
