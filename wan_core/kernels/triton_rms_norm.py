"""RMS norm over the full width of q or k and the rotation of its heads as one Triton kernel: read once, written once.

One program computes one token. Neighbouring features are a pair, so the row is held as even and odd halves. What it
computes is `block.rms_norm`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .block import Tables

_NUM_WARPS = 8


@triton.jit
def fused_rms_norm(
    x_pointer, weight_pointer, cos_pointer, sin_pointer, out_pointer,
    num_tokens, dim, eps, x_stride, HALF_HEAD: tl.constexpr, HAS_TABLES: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    pair = tl.arange(0, HALF)
    column = tl.arange(0, 2 * HALF)
    x = tl.load(x_pointer + row * x_stride + column, mask=column < dim, other=0.0).to(tl.float32)
    weight = tl.load(weight_pointer + column, mask=column < dim, other=0.0).to(tl.float32)
    normed = x * (1.0 / tl.sqrt(tl.sum(x * x, axis=0) / dim + eps)) * weight
    if HAS_TABLES:
        even, odd = tl.split(tl.reshape(normed, (HALF, 2)))
        angle = (row % num_tokens) * HALF_HEAD + pair % HALF_HEAD
        cos = tl.load(cos_pointer + angle, mask=2 * pair < dim, other=0.0)
        sin = tl.load(sin_pointer + angle, mask=2 * pair < dim, other=0.0)
        normed = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (2 * HALF,))
    tl.store(out_pointer + row * dim + column, normed.to(out_pointer.dtype.element_ty), mask=column < dim)


def rms_norm(
    x: Tensor, weight: Tensor, num_heads: int, tables: Tables | None, eps: float, dtype: torch.dtype
) -> Tensor:
    """RMS norm of x (B, L, D), which may be columns of a wider product; answers (B, L, N, D), rotated by the tables."""
    num_batches, num_tokens, dim = x.shape
    if x.stride(2) != 1 or x.stride(0) != num_tokens * x.stride(1):
        x = x.contiguous()
    out = torch.empty(num_batches, num_tokens, num_heads, dim // num_heads, dtype=dtype, device=x.device)
    cos, sin = (weight, weight) if tables is None else (table.contiguous() for table in tables)
    with torch.cuda.device_of(x):
        fused_rms_norm[(num_batches * num_tokens,)](
            x, weight, cos, sin, out, num_tokens, dim, eps, x.stride(1), HALF_HEAD=dim // num_heads // 2,
            HAS_TABLES=tables is not None, HALF=triton.next_power_of_2(dim) // 2, num_warps=_NUM_WARPS,
        )  # fmt: skip
    return out
