"""FlashAttention 4, the CuTe DSL kernels for Hopper and Blackwell: `pip install flash-attn-4` (a prerelease).

The fastest exact kernel found on one H200: 662-670 TFLOP/s at 75,600 tokens, where cuDNN reaches 546-573 (2026-11-21).
Kernels are compiled on the first call for a dtype and head dimension, not for a length; that takes some seconds.
Reads and writes (B, L, N, D).
"""

from torch import Tensor

from ..interface import Attend, AttentionBackend
from .limits import Limits
from .opaque import opaque, vendor_errors


def _load() -> Attend:
    with vendor_errors():
        from flash_attn.cute import flash_attn_func

    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = flash_attn_func(q, k, v)
        return out[0] if isinstance(out, tuple) else out  # newer versions add the log-sum-exp, or None in its place

    return opaque("flash_attention_4", kernel)


BACKEND = AttentionBackend(
    name="flash-attn-4",
    quality="exact",
    rejects=Limits(oldest=(9, 0), head_dim=128, head_dim_step=8, library="flash-attn-4").rejects,
    load=_load,
)
