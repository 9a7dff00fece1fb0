"""Layer norm with modulation, and the sum of the residual stream before it, as one Triton kernel.

One program computes one token: it holds the row in registers, so the row is read once and every result is written
once. Statistics are those of the centred row (two passes over registers, none over memory). What it computes is
`block.norm`, `block.add` and `block.add_norm`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Half the registers of a multiprocessor hold enough rows in flight at the 5120 features of A14B.
_NUM_WARPS = 8


@triton.jit
def fused_norm(
    x_pointer, branch_pointer, gate_pointer, scale_pointer, shift_pointer, sum_pointer, out_pointer,
    num_tokens, dim, eps,
    gate_batch, gate_token, scale_batch, scale_token, shift_batch, shift_token,
    HAS_BRANCH: tl.constexpr, HAS_GATE: tl.constexpr, HAS_NORM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    batch, token = row // num_tokens, row % num_tokens
    column = tl.arange(0, BLOCK)
    inside = column < dim
    x = tl.load(x_pointer + row * dim + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_BRANCH:
        branch = tl.load(branch_pointer + row * dim + column, mask=inside, other=0.0).to(tl.float32)
        if HAS_GATE:
            gate_row = gate_pointer + batch * gate_batch + token * gate_token
            branch *= tl.load(gate_row + column, mask=inside, other=0.0)
        # The norm is that of the stream as it is kept.
        kept = (x + branch).to(sum_pointer.dtype.element_ty)
        tl.store(sum_pointer + row * dim + column, kept, mask=inside)
        x = kept.to(tl.float32)
    if HAS_NORM:
        mean = tl.sum(x, axis=0) / dim
        centred = tl.where(inside, x - mean, 0.0)
        inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / dim + eps)
        scale_row = scale_pointer + batch * scale_batch + token * scale_token
        shift_row = shift_pointer + batch * shift_batch + token * shift_token
        scale = tl.load(scale_row + column, mask=inside, other=0.0)
        shift = tl.load(shift_row + column, mask=inside, other=0.0)
        out = centred * inverse * scale + shift
        tl.store(out_pointer + row * dim + column, out.to(out_pointer.dtype.element_ty), mask=inside)


def norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Layer norm of x (B, L, D), times scale, plus shift."""
    x = x.contiguous()
    out = torch.empty_like(x, dtype=dtype)
    _launch(x, None, None, scale, shift, eps, None, out)
    return out


def add(x: Tensor, branch: Tensor, gate: Tensor | None) -> Tensor:
    """x + gate * branch in the dtype of x."""
    x = x.contiguous()
    total = torch.empty_like(x)
    _launch(x, branch, gate, None, None, 0.0, total, None)
    return total


def add_norm(
    x: Tensor, branch: Tensor, gate: Tensor | None, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The sum of `add`, and its `norm`."""
    x = x.contiguous()
    total, out = torch.empty_like(x), torch.empty_like(x, dtype=dtype)
    _launch(x, branch, gate, scale, shift, eps, total, out)
    return total, out


def _launch(
    x: Tensor, branch: Tensor | None, gate: Tensor | None, scale: Tensor | None, shift: Tensor | None, eps: float,
    total: Tensor | None, out: Tensor | None,
) -> None:  # fmt: skip
    num_batches, num_tokens, dim = x.shape
    (gate, *gate_strides), (scale, *scale_strides), (shift, *shift_strides) = map(_by_token, (gate, scale, shift))
    branch = None if branch is None else branch.contiguous()
    with torch.cuda.device_of(x):
        # A pointer that is not used is x's: Triton wants a tensor.
        fused_norm[(num_batches * num_tokens,)](
            x, *(x if tensor is None else tensor for tensor in (branch, gate, scale, shift, total, out)),
            num_tokens, dim, eps, *gate_strides, *scale_strides, *shift_strides,
            HAS_BRANCH=branch is not None, HAS_GATE=gate is not None, HAS_NORM=out is not None,
            BLOCK=triton.next_power_of_2(dim), num_warps=_NUM_WARPS,
        )  # fmt: skip


def _by_token(vector: Tensor | None) -> tuple[Tensor | None, int, int]:
    """A vector (D,), (B, 1, D) or (B, L, D) with its strides over samples and tokens, 0 where all have the same."""
    if vector is None:
        return None, 0, 0
    if vector.stride(-1) != 1 or vector.dtype != torch.float32:
        vector = vector.float().contiguous()
    if vector.ndim == 1:
        return vector, 0, 0
    batch, token = (vector.stride(axis) if vector.shape[axis] > 1 else 0 for axis in (0, 1))
    return vector, batch, token
