"""The block's elementwise work in kernels of its own: `block.TORCH` is what they compute. Importing this needs Triton.

Launched eagerly: a block is some twenty launches in 60 to 240 milliseconds, so there is nothing for a compiler to save,
and no graph to be compiled for every new size.
"""

import torch
from torch import Tensor, nn

from . import block
from .block import BlockKernels
from .triton_decode import decode
from .triton_norm import add, add_norm, norm
from .triton_rms_norm import rms_norm


def expand_in_epilogue(linear: nn.Module, x: Tensor) -> Tensor:
    """GELU (tanh) of a linear layer in the epilogue of cuBLASLt's product, before it is rounded: one rounding less.

    A layer that does not say of itself that it is plain, or that something stands beside, is called as it is.
    """
    if linear._forward_hooks or not vars(type(linear)).get("is_plain"):
        return block.expand(linear, x)
    weight = linear.weight  # a layer that keeps codes decodes them at each look
    rows = x.flatten(0, -2).to(weight.dtype)
    return torch._addmm_activation(linear.bias, rows, weight.t(), use_gelu=True).unflatten(0, x.shape[:-1])


TRITON = BlockKernels(
    name="triton",
    norm=norm,
    add=add,
    add_norm=add_norm,
    rms_norm=rms_norm,
    expand=expand_in_epilogue,
    decode=decode,
)
