"""Two partial attentions over different keys merged into the attention over all of them, as one Triton kernel.

out = sum of weight_i * part_i with weight_i = exp(lse_i) / sum of exp(lse_j), where lse is the logarithm of the sum of
the exponentials of the scores that a part has seen (FlashAttention, arXiv:2205.14135). What it computes is `merge`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def attention_merge(
    first_pointer, second_pointer, first_lse_pointer, second_lse_pointer, out_pointer, num_tokens, num_heads,
    HEAD: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    batch, token = row // num_tokens, row % num_tokens
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    inside = head < num_heads
    at = (batch * num_heads + head) * num_tokens + token
    first_lse = tl.load(first_lse_pointer + at, mask=inside, other=0.0)
    second_lse = tl.load(second_lse_pointer + at, mask=inside, other=0.0)
    weight = 1.0 / (1.0 + tl.exp(first_lse - second_lse))
    place = (row * num_heads + head)[:, None] * HEAD + tl.arange(0, HEAD)[None, :]
    first = tl.load(first_pointer + place, mask=inside[:, None], other=0.0).to(tl.float32)
    second = tl.load(second_pointer + place, mask=inside[:, None], other=0.0).to(tl.float32)
    out = first + (second - first) * weight[:, None]
    tl.store(out_pointer + place, out.to(out_pointer.dtype.element_ty), mask=inside[:, None])


def merge(first: Tensor, first_lse: Tensor, second: Tensor, second_lse: Tensor) -> Tensor:
    """Parts (B, L, N, D) with a power of two for D, their lse (B, N, L) float32; the answer in the parts' dtype."""
    num_batches, num_tokens, num_heads, head_dim = first.shape
    first, second = first.contiguous(), second.contiguous()
    out = torch.empty_like(first)
    heads = 8
    with torch.cuda.device_of(first):
        attention_merge[(num_batches * num_tokens, triton.cdiv(num_heads, heads))](
            first, second, first_lse, second_lse, out, num_tokens, num_heads, HEAD=head_dim, HEADS=heads, num_warps=4
        )
    return out
