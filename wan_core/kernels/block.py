"""The work of a transformer block between its matrix products, as six functions that a build can bind otherwise.

Everything here is memory traffic: at 1280x720x81 one block reads and writes 24 GB for it if every tensor passes through
memory once, 6 of its 240 milliseconds on one H200, and twice to four times that if each operator stands alone.

`TORCH` is the definition, in plain PyTorch, and what `torch.compile` fuses by itself; `triton_block.TRITON` computes
the same in kernels of its own. One rule holds for both: float32 inside, and one rounding, at the end.

Layout: hidden states are (B, L, D). Vectors of modulation are float32, (B, 1, D), (B, L, D) or (D,). Tables of the
rotation are float32 (L, 1, D_head / 2); pairs of neighbouring features turn together.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .decode import decode

# Cosines and sines of the rotation by token.
Tables = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockKernels:
    """What a block is built with; `name` is for reports. `dtype` is always that of the answer.

    norm(x, scale, shift, eps, dtype): layer norm of x, times scale, plus shift.
    add(x, branch, gate): x + gate * branch in the dtype of x; no gate is a gate of one.
    add_norm(x, branch, gate, scale, shift, eps, dtype): that sum, and the norm of it.
    rms_norm(x, weight, num_heads, tables, eps, dtype): RMS norm over the full width, split into heads (B, L, N, D) and,
    where there are tables, rotated.
    expand(linear, x): GELU (tanh) of a linear layer.
    decode(place, codes, scale, form): what a weight's codes stand for, written to its place, as `decode.decode` says.
    """

    name: str
    norm: Callable[[Tensor, Tensor, Tensor, float, torch.dtype], Tensor]
    add: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    add_norm: Callable[[Tensor, Tensor, Tensor | None, Tensor, Tensor, float, torch.dtype], tuple[Tensor, Tensor]]
    rms_norm: Callable[[Tensor, Tensor, int, Tables | None, float, torch.dtype], Tensor]
    expand: Callable[[nn.Module, Tensor], Tensor]
    decode: Callable[[Tensor, Tensor, Tensor | None, str], None]


def norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Layer norm of x (B, L, D), times scale, plus shift."""
    return (F.layer_norm(x.float(), x.shape[-1:], eps=eps) * scale + shift).to(dtype)


def add(x: Tensor, branch: Tensor, gate: Tensor | None) -> Tensor:
    """x + gate * branch, summed in float32 and rounded once where the stream x is narrower."""
    branch = branch.float() if gate is None else gate * branch
    return (x + branch).to(x.dtype)


def add_norm(
    x: Tensor, branch: Tensor, gate: Tensor | None, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The sum of `add`, as it is kept, and its `norm`."""
    x = add(x, branch, gate)
    return x, norm(x, scale, shift, eps, dtype)


def rms_norm(
    x: Tensor, weight: Tensor, num_heads: int, tables: Tables | None, eps: float, dtype: torch.dtype
) -> Tensor:
    """RMS norm (arXiv:1910.07467) of x (B, L, D) over its full width, then heads (B, L, N, D), then their rotation."""
    normed = F.rms_norm(x.float(), weight.shape, weight.float(), eps)
    heads = rearrange(normed, "B L (N D) -> B L N D", N=num_heads)
    return (heads if tables is None else rotate(heads, *tables)).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (2i, 2i + 1) of x (B, L, N, D) float32 by the angles of each token."""
    even, odd = rearrange(x, "B L N (D pair) -> pair B L N D", pair=2)
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return rearrange(turned, "B L N D pair -> B L N (D pair)")


def expand(linear: nn.Module, x: Tensor) -> Tensor:
    """GELU (arXiv:1606.08415), in its tanh form, of a linear layer."""
    return F.gelu(linear(x), approximate="tanh")


TORCH = BlockKernels(
    name="torch", norm=norm, add=add, add_norm=add_norm, rms_norm=rms_norm, expand=expand, decode=decode
)
