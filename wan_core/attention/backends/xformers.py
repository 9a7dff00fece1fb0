"""xFormers: `memory_efficient_attention` (arXiv:2112.05682), which chooses among the kernels that it was built with.

On a recent card that choice is a FlashAttention; on one without native bfloat16 it is the kernel that torch calls
"efficient", also in float32. Reads and writes (B, L, N, D).
"""

from ..interface import Attend, AttentionBackend
from .limits import HALF, Limits
from .opaque import opaque, vendor_errors


def _load() -> Attend:
    with vendor_errors():
        from xformers.ops import memory_efficient_attention

    return opaque("xformers", lambda q, k, v: memory_efficient_attention(q, k, v))


BACKEND = AttentionBackend(
    name="xformers",
    quality="exact",
    rejects=Limits(dtypes=(*HALF, "float32"), library="xformers").rejects,
    load=_load,
)
