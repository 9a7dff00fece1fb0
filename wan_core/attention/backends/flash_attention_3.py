"""FlashAttention 3 (arXiv:2407.08608), the CUDA kernels for Hopper: package `flash-attn-3`, built from source.

About 650 TFLOP/s in bfloat16 on an H100 (its README). Its 8-bit path is not used: the authors of SageAttention 2
measured heavy damage from it in video models (arXiv:2411.10958). Reads and writes (B, L, N, D).
"""

from torch import Tensor

from ..interface import Attend, AttentionBackend
from .limits import Limits
from .opaque import opaque, vendor_errors


def _load() -> Attend:
    with vendor_errors():
        from flash_attn_interface import flash_attn_func

    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = flash_attn_func(q, k, v)
        return out[0] if isinstance(out, tuple) else out  # its first versions always gave the log-sum-exp as well

    return opaque("flash_attention_3", kernel)


BACKEND = AttentionBackend(
    name="flash-attn-3",
    quality="exact",
    rejects=Limits(oldest=(9, 0), newest=(9, 0), head_dim=256, head_dim_step=8, library="flash-attn-3").rejects,
    load=_load,
)
