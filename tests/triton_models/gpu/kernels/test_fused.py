"""The kernels between the matrix products against their definitions."""

from __future__ import annotations

import pytest
import torch

from engine_builder.model.backbone import RMSNorm, modulate, rotate
from engine_builder.targets import precision
from triton_models.gpu.kernels import fused
from triton_models.gpu.kernels.fused import Modulation

pytestmark = pytest.mark.unit
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-6


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def norm(width: int, seed: int) -> RMSNorm:
    module = RMSNorm(width, EPS).to(DEVICE)
    module.weight.data = 1 + 0.1 * normal(seed, width)
    return module


def test_add_norm_adds_in_place_and_normalises():
    x, update, module = normal(0, 2, 70, 48), normal(1, 2, 70, 48), norm(48, 2)
    expected = x + update
    out = fused.add_norm(x, update, module.weight.detach(), EPS, torch.float32)
    torch.testing.assert_close(x, expected)
    torch.testing.assert_close(out, module(expected).detach())
    torch.testing.assert_close(fused.add_norm(x, None, module.weight.detach(), EPS, torch.float32), out)


def test_add_norm_modulates_each_row_of_the_batch_on_its_own():
    x, update, module = normal(0, 3, 5, 32), normal(1, 3, 5, 32), norm(32, 2)
    shared, tables = normal(3, 3, 6, 32), normal(4, 2, 6, 32)
    m = Modulation(shared, tables)
    gate = (shared + tables[0])[:, m.GATE_A].unsqueeze(1)
    scale, shift = ((shared + tables[1])[:, row].unsqueeze(1) for row in (m.SCALE_M, m.SHIFT_M))
    expected = x + modulate(update, gate)
    out = fused.add_norm(
        x, update, module.weight.detach(), EPS, torch.float32, m, (0, m.GATE_A), (1, m.SCALE_M, m.SHIFT_M)
    )
    torch.testing.assert_close(x, expected)
    torch.testing.assert_close(out, modulate(module(expected).detach(), scale, shift))


def test_results_are_rounded_to_nearest_even():
    x, module = normal(0, 1, 64, 256), norm(256, 1)
    exact = fused.add_norm(x, None, module.weight.detach(), EPS, torch.float32)
    rounded = fused.add_norm(x, None, module.weight.detach(), EPS, torch.bfloat16)
    assert rounded.equal(exact.bfloat16())


@pytest.mark.parametrize("size", [16, 48])
def test_norm_rope_is_the_models_qk_norm_and_rotation(size):
    heads, groups, tokens = 6, 2, 9
    qkv = normal(0, 2, tokens, heads + 2 * groups, size)
    q_norm, k_norm, angle = norm(size, 1), norm(size, 2), normal(3, 2, tokens, size // 2)
    q, k, v = (torch.full((2, tokens, n, size), torch.nan, device=DEVICE) for n in (heads, groups, groups))
    cos, sin = angle.cos(), angle.sin()
    fused.norm_rope(qkv, q_norm.weight.detach(), k_norm.weight.detach(), EPS, cos, sin, q, k, v)
    torch.testing.assert_close(q, rotate(q_norm(qkv[:, :, :heads]), cos, sin).detach())
    torch.testing.assert_close(k, rotate(k_norm(qkv[:, :, heads : heads + groups]), cos, sin).detach())
    assert v.equal(qkv[:, :, heads + groups :])


def test_norm_rope_refuses_another_number_of_heads():
    q, k = torch.zeros(1, 1, 4, 16), torch.zeros(1, 1, 2, 16)
    with pytest.raises(ValueError, match=r"qkv: expected 4 \+ 2 \* 2 heads, got 7"):
        fused.norm_rope(torch.zeros(1, 1, 7, 16), q, q, EPS, q, q, q, k, k)


def test_silu_mul():
    gate_up = normal(0, 2, 3, 2 * 40)
    gate, up = gate_up.chunk(2, dim=-1)
    torch.testing.assert_close(fused.silu_mul(gate_up), torch.nn.functional.silu(gate) * up)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_become_float8_with_a_scale_each(dtype):
    sizes = torch.tensor([1.0, 1e-3, 300.0, 0.0, 1e-9], device=DEVICE)
    x = (normal(0, 5, 96) * sizes[:, None]).to(dtype)
    (values, scale), (want, want_scale) = fused.to_fp8(x), precision.to_fp8(x)
    torch.testing.assert_close(scale, want_scale)
    assert (values.float() == want.float()).float().mean() > 0.99  # a quotient may fall on the other side of a tie
    error = (values.float() * scale[:, None] - x.float()).abs().amax(1)
    assert (error <= x.float().abs().amax(1) / 16).all()  # half of the last of three bits
