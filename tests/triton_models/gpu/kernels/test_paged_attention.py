"""The attention kernel against the oracle's attention, in Triton's interpreter (on a GPU: compiled)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from engine_builder.model.backbone import attend
from engine_builder.model.steps import gather_history
from triton_models.gpu.kernels.history_index import HistoryIndex
from triton_models.gpu.kernels.paged_attention import Chip, choose_tiling, paged_attention

pytestmark = pytest.mark.unit
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
H200 = Chip(132, 232448)


def build_index(page_table: Tensor, page_range: Tensor, page_tokens: int) -> HistoryIndex:
    index = HistoryIndex.empty(*page_table.shape, page_tokens, page_table.device)
    index.fill(page_table, page_range, page_tokens)
    return index


@dataclass
class Case:
    """Random queries, own K and V and a pool in which everything that no row may see is NaN."""

    q: Tensor
    k: Tensor
    v: Tensor
    k_pool: Tensor  # [pages, page, G, D]
    v_pool: Tensor
    table: Tensor
    span: Tensor
    mask: Tensor | None

    @classmethod
    def random(
        cls,
        seed: int,
        batch: int,
        tokens: int,
        heads: int,
        groups: int,
        size: int,
        pages: int,
        page: int,
        dtype: torch.dtype,
        mask: str | None,
    ) -> Case:
        g = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g).to(dtype).to(DEVICE)

        table = torch.randperm(batch * pages, generator=g).view(batch, pages) + 1
        first = torch.randint(0, page, (batch, pages), generator=g) * (torch.rand(batch, pages, generator=g) < 0.3)
        last = torch.where(torch.rand(batch, pages, generator=g) < 0.6, page, first + (page - first) // 2)
        last = torch.where(torch.rand(batch, pages, generator=g) < 0.15, first, last)  # empty pages in between
        lengths = torch.randint(0, pages + 1, (batch,), generator=g)
        lengths[0], lengths[-1] = pages, 0 if batch > 1 else pages
        here = torch.arange(pages) < lengths[:, None]
        table, first, last = table * here, first * here, last * here  # the rest: null pages of which nothing is seen
        k_pool, v_pool = (normal(batch * pages + 1, page, groups, size) for _ in range(2))
        offset = torch.arange(page)
        seen = torch.zeros(batch * pages + 1, page, dtype=torch.bool)
        seen[table.flatten()] = ((offset >= first[..., None]) & (offset < last[..., None])).flatten(0, 1)
        seen[0] = True
        for pool in (k_pool, v_pool):
            pool[~seen.to(DEVICE)] = torch.nan
            pool[0] = 0
        masks = {
            "causal": torch.ones(tokens, tokens, dtype=torch.bool).tril().expand(batch, -1, -1),
            "random": (torch.rand(batch, tokens, tokens, generator=g) < 0.5) | torch.eye(tokens, dtype=torch.bool),
        }
        return cls(
            normal(batch, tokens, heads, size),
            normal(batch, tokens, groups, size),
            normal(batch, tokens, groups, size),
            k_pool,
            v_pool,
            table.to(DEVICE),
            torch.stack((first, last), dim=-1).to(DEVICE),
            masks[mask].contiguous().to(DEVICE) if mask else None,
        )

    @property
    def page(self) -> int:
        return self.k_pool.shape[1]

    def oracle(self) -> Tensor:
        """[B, T, H, D] in float32, over K and V collected page by page."""
        batch, tokens = self.q.shape[:2]
        pools = (torch.nan_to_num(pool.float()).unsqueeze(0).cpu() for pool in (self.k_pool, self.v_pool))
        (history,), visible = gather_history(self.table.cpu(), self.span.cpu(), *pools)
        own = torch.ones(batch, tokens, tokens, dtype=torch.bool) if self.mask is None else self.mask.cpu()
        mask = torch.cat((visible.unsqueeze(1).expand(-1, tokens, -1), own), dim=2)
        k = torch.cat((history[0], self.k.float().cpu()), dim=1)
        v = torch.cat((history[1], self.v.float().cpu()), dim=1)
        return attend(self.q.float().cpu(), k, v, mask).view(self.q.shape)

    def kernel(self, splits: int | None = None) -> Tensor:
        index = build_index(self.table, self.span, self.page)
        batch, tokens, heads, size = self.q.shape
        t = choose_tiling(batch, tokens, heads, self.k.shape[2], size, 4, index.tokens.shape[1], Chip.of(self.q.device))
        out = paged_attention(
            self.q,
            self.k,
            self.v,
            self.k_pool,
            self.v_pool,
            index,
            self.mask,
            out_dtype=torch.float32,
            tiling=replace(t, splits=splits) if splits else None,
        )
        return out.cpu()


CASES = [
    # batch, tokens, heads, groups, size, pages, page, mask, splits
    (3, 13, 4, 2, 16, 6, 16, "random", None),  # a think block, ragged
    (2, 21, 6, 2, 32, 5, 8, "causal", None),  # a prompt, three heads a group
    (3, 18, 4, 4, 64, 9, 16, None, None),  # noisy latents, no sharing of heads
    (2, 70, 8, 1, 16, 4, 24, "random", 3),  # all heads in one group, odd page size
    (3, 1, 8, 2, 64, 30, 16, None, 7),  # a slot, split keys: some splits of short rows have none
    (1, 1, 4, 1, 128, 3, 64, None, 5),
    (2, 130, 4, 2, 16, 2, 16, None, 2),  # several tiles of queries and of own keys
]


@pytest.mark.parametrize("case", CASES)
def test_float32_equals_the_oracle(case):
    *sizes, mask, splits = case
    c = Case.random(7, *sizes, torch.float32, mask)
    torch.testing.assert_close(c.kernel(splits), c.oracle(), atol=1e-5, rtol=1e-5)


def relative(error: Tensor, of: Tensor) -> float:
    return float(error.norm() / of.norm())


def assert_bfloat16_equals(c: Case, splits: int | None = None) -> None:
    """Kernel == oracle on the same bf16 inputs, the result in float32, in three readings.

    Matrix units take the softmax weights in bf16, 8 significant bits: each is off by 2^-8 at most, which no kernel with
    one bf16 product per key can avoid (FlashAttention's neither). The error of a sum is read against the sum of its
    terms' magnitudes (Higham 2002, 3.1): here the same attention over |V|.
    """
    want = c.oracle()
    error = c.kernel(splits) - want
    magnitude = replace(c, v=c.v.abs(), v_pool=c.v_pool.abs()).oracle()
    assert relative(error, magnitude) < 1e-3
    assert (error.abs() <= 2**-8 * magnitude).all()
    # Read against a result whose terms cancel it is about 1.2e-3: less than writing that result in bf16 costs.
    assert relative(error, want) < relative(want.bfloat16() - want, want)


@pytest.mark.parametrize("case", CASES[:6])
def test_bfloat16_equals_the_oracle_on_the_same_rounded_inputs(case):
    *sizes, mask, splits = case
    assert_bfloat16_equals(Case.random(11, *sizes, torch.bfloat16, mask), splits)


def test_weights_add_up_to_one_in_bfloat16():
    """Values that all tokens share come out as they went in, however the weights were rounded."""
    c = Case.random(5, 2, 9, 4, 2, 16, 5, 16, torch.bfloat16, "random")
    shared = replace(c, v=torch.full_like(c.v, 3.0), v_pool=torch.full_like(c.v_pool, 3.0))
    for splits in (1, 3):
        torch.testing.assert_close(shared.kernel(splits), torch.full(c.q.shape, 3.0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("where", ["q", "k", "v", "k_pool", "v_pool"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_a_number_is_not_hidden(where, dtype):
    """Rounding by integers made a zero of the NaN with all bits set, and a zero weight hides what it belongs to."""
    c = Case.random(2, 1, 4, 4, 2, 16, 2, 16, dtype, None)
    seen = int(build_index(c.table, c.span, c.page).tokens[0, 0])
    at = divmod(seen, c.page) if "pool" in where else (0, 2)
    bits = getattr(c, where).view(torch.int16 if dtype == torch.bfloat16 else torch.int32)
    bits[at] = 0x7FFF if dtype == torch.bfloat16 else 0x7FFFFFFF
    assert c.kernel()[0, 2].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(6))
def test_random_page_tables(seed, dtype):
    """Think blocks (random masks), prompts (causal) and noisy latents (none), ragged, in all GQA ratios from 1 to 4."""
    g = torch.Generator().manual_seed(seed)
    pages, page = int(torch.randint(1, 12, (), generator=g)), 2 ** int(torch.randint(2, 6, (), generator=g))
    tokens, ratio = int(torch.randint(1, 30, (), generator=g)), 1 + seed % 4
    mask = ("random", None, "causal")[seed % 3]
    c = Case.random(seed, 2, tokens, 2 * ratio, 2, 16, pages, page, dtype, mask)
    if dtype == torch.float32:
        torch.testing.assert_close(c.kernel(), c.oracle(), atol=1e-5, rtol=1e-5)
    else:
        assert_bfloat16_equals(c)


def test_rows_choose_their_history():
    c = Case.random(3, 2, 5, 4, 2, 16, 4, 16, torch.float32, None)
    index = build_index(c.table.flip(0), c.span.flip(0), c.page)
    rows = torch.tensor([1, 0], dtype=torch.int32, device=DEVICE)
    out = paged_attention(c.q, c.k, c.v, c.k_pool, c.v_pool, index, rows=rows)
    torch.testing.assert_close(out.cpu(), c.oracle(), atol=1e-5, rtol=1e-5)


def test_index_lists_the_visible_tokens_in_order():
    table = torch.tensor([[3, 5, 2], [4, 0, 0]], device=DEVICE)
    span = torch.tensor([[[1, 4], [2, 2], [0, 3]], [[0, 2], [0, 0], [0, 0]]], device=DEVICE)
    index = build_index(table, span, 4)
    assert index.lengths.tolist() == [6, 2]
    assert index.tokens[0, :6].tolist() == [13, 14, 15, 8, 9, 10]
    assert index.tokens[1, :2].tolist() == [16, 17]
    assert index.tokens[1, 2:].eq(0).all()


def test_index_of_many_pages():
    pages, page = 200, 4
    table = (torch.arange(pages).flip(0) + 1).unsqueeze(0).to(DEVICE)
    span = torch.tensor([0, page], device=DEVICE).expand(1, pages, 2).contiguous()
    index = build_index(table, span, page)
    expected = (table.cpu().flatten()[:, None] * page + torch.arange(page)).flatten()
    assert index.tokens[0, : pages * page].cpu().equal(expected.int())


def test_index_refuses_what_does_not_fit():
    index = HistoryIndex.empty(1, 2, 16, DEVICE)
    table = torch.zeros(2, 4, dtype=torch.int64, device=DEVICE)
    with pytest.raises(ValueError, match="page_table: expected at most 1 rows"):
        index.fill(table, torch.zeros(2, 4, 2, dtype=torch.int64, device=DEVICE), 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replace(c, k=c.k[:, :-1]), "k: expected"),
        (lambda c: replace(c, v_pool=c.v_pool.double()), "v_pool: expected torch.float32 like q"),
        (lambda c: replace(c, mask=torch.ones(2, 5, 5, device=DEVICE)), "mask: expected bool"),
        (lambda c: replace(c, q=c.q[..., :12]), "q: expected a head size that is a power of two"),
        (lambda c: replace(c, q=c.q[:, :, :3]), "k: expected a number of heads that divides 3"),
        (lambda c: replace(c, k_pool=c.k_pool[:, :, :1]), "k_pool: expected"),
    ],
)
def test_misfits_are_named(change, message):
    c = change(Case.random(0, 2, 5, 4, 2, 16, 2, 16, torch.float32, None))
    with pytest.raises(ValueError, match=message):
        c.kernel()


def test_tiling_fits_the_chip():
    """Shared memory of every pass of the 8B model on the chips that the compile test covers."""
    for shared in (166912, 232448, 101376):
        for item, tokens in itertools.product((2, 4), (1, 9, 256, 300, 924)):
            t = choose_tiling(4, tokens, 32, 8, 128, item, 16384, Chip(132, shared))
            assert (t.rows + t.keys * (t.stages - 1)) * 128 * item <= shared


def test_tiling_fills_the_chip():
    slot = choose_tiling(1, 1, 32, 8, 128, 2, 16384, H200)
    assert 8 * slot.splits >= 2 * H200.multiprocessors
    solver = choose_tiling(1, 256, 32, 8, 128, 2, 16384, H200)
    assert solver.splits == 2  # 64 programs for 132 multiprocessors
    assert choose_tiling(8, 256, 32, 8, 128, 2, 16384, H200).splits == 1
