"""FlashAttention 2 (arXiv:2307.08691): package `flash-attn`. The kernel that torch's "flash" descends from.

Made for Ampere; on Hopper it reaches little more than half of what FlashAttention 3 does (370 against 648 TFLOP/s in
the README of the latter). Reads and writes (B, L, N, D).
"""

from ..interface import Attend, AttentionBackend
from .limits import Limits
from .opaque import opaque, vendor_errors


def _load() -> Attend:
    with vendor_errors():
        from flash_attn import flash_attn_func

    return opaque("flash_attention_2", lambda q, k, v: flash_attn_func(q, k, v))


BACKEND = AttentionBackend(
    name="flash-attn-2",
    quality="exact",
    rejects=Limits(oldest=(8, 0), head_dim=256, library="flash-attn").rejects,
    load=_load,
)
