"""Triton kernels are defined through this module, which decides where they run.

With a CUDA device they are compiled for it. Without one they run in Triton's interpreter (plain numpy on the CPU, made
for checking numerics, not for speed). Triton reads that choice when it is imported, so it is made here, first.
"""

from __future__ import annotations

import os
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import triton
import triton.language as tl
from triton import knobs
from triton.runtime import interpreter

jit: Any = triton.jit  # the arguments of a kernel are no Python types: nothing that a type checker could check
INTERPRETED: bool = bool(knobs.runtime.interpret)
EMULATED = tl.constexpr(INTERPRETED)

if INTERPRETED and triton.__version__.startswith("3.6."):
    # It takes int() of arrays [1], which numpy allows no more since 2.4. Triton 3.7 does what stands here.
    _patch: Any = interpreter._patch_lang_tensor

    def _patch_with_index(tensor: Any, scope: Any) -> None:
        _patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = _patch_with_index

__all__ = ["INTERPRETED", "ceil_div", "jit", "narrow", "next_power_of_2", "operand", "tl"]


@jit
def narrow(x, dtype: tl.constexpr):
    """float32 -> `dtype`, to nearest even; NaN stays NaN.

    bf16 goes two at a time, which the compiler does not find by itself where the result is used twice: a single
    conversion (F2F) takes the unit that also does exp. The interpreter truncates to bf16, so there bits are rounded.
    """
    if dtype != tl.bfloat16:
        x = x.to(dtype)
    elif EMULATED:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x).to(dtype)
    else:
        x = tl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,r,r", [x], dtype=tl.bfloat16, is_pure=True, pack=2
        )
    return x


@jit
def operand(x):
    """An operand of tl.dot. The interpreter keeps bf16 as raw bits and multiplies those: there it gets float32."""
    if EMULATED:
        return x.to(tl.float32)
    return x


def ceil_div(a: int, b: int) -> int:
    """How many pieces of `b` cover `a`."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least `n` (1 for n < 1); Triton's block shapes need one."""
    return 1 << max(0, n - 1).bit_length()
