"""The safe kernels: PyTorch's own and nothing compiled, bound into built experts for a while.

Used where the kernels that a plan chose gave numbers that are not finite. The weights stay as they are and where they
are; what is bound is put back afterwards.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..kernels.block import TORCH

# In this order: plain matrix products where their score matrix is small, else a kernel that keeps none. cuDNN's is left
# out: it is among the fast ones, and may be what failed.
_MATH_SCORES = 1 << 28
_SMALL = (SDPBackend.MATH,)
_LARGE = (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH)

SAFE_KERNELS = "PyTorch's own kernels, nothing compiled, one guidance pass after the other"


def safe_attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention over (B, L, N, D)."""
    scores = q.shape[0] * q.shape[2] * q.shape[1] * k.shape[1]
    order = _SMALL if scores <= _MATH_SCORES else _LARGE
    with sdpa_kernel(list(order), set_priority=True):
        return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


@contextmanager
def eager() -> Iterator[None]:
    """What was compiled runs as it is written."""
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def safe_kernels(transformers: Iterable[nn.Module]) -> Iterator[None]:
    """While this is open, the transformers run on the safe kernels."""
    safe = {"attend": safe_attend, "kernels": TORCH}
    bound = [
        (module, name, getattr(module, name))
        for transformer in transformers
        for module in transformer.modules()
        for name in safe
        if hasattr(module, name)
    ]
    try:
        for module, name, _ in bound:
            setattr(module, name, safe[name])
        with eager():
            yield
    finally:
        for module, name, kernel in bound:
            setattr(module, name, kernel)
