"""FlashAttention 4, the CuTe DSL kernels for Hopper and Blackwell: `pip install flash-attn-4` (a prerelease).

The fastest exact kernel found on one H200: 662-670 TFLOP/s at 75,600 tokens, where cuDNN reaches 546-573 (2026-11-21).
Kernels are compiled on the first call for a dtype and head dimension, not for a length; that takes some seconds, once:
the library is told to keep them, in our own folder, since what it loads from there is code.
Reads and writes (B, L, N, D).

"flash-attn-4-wide" is the same kernel in blocks of 192 queries and 112 keys in place of 128 and 128, the probabilities
in shared memory. Every block reads all keys and values out of the L2 cache, so fewer blocks read less: on a card at its
power limit 703 instead of 662 TFLOP/s at 75,600 tokens (one H200, 2026-11-21).
"""

import os
import warnings

from torch import Tensor

from ...hardware import cache_folder
from ..interface import Attend, AttentionBackend
from .limits import Limits
from .opaque import opaque, vendor_errors

# Queries and keys of a block; 192 x 112 is the largest that fits shared memory with its probabilities.
_WIDE_TILE = (192, 112)


def _prepare() -> None:
    """To be called before the library is imported."""
    # It warns of an argument of its own whenever it compiles, once for each kernel and in several lines.
    warnings.filterwarnings("ignore", message="Argument aux_data .* cannot be converted")
    # Read once, at the import; whoever has set them has reasons.
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", str(cache_folder() / "flash-attn-4"))


def _load() -> Attend:
    _prepare()
    with vendor_errors():
        from flash_attn.cute import flash_attn_func

    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = flash_attn_func(q, k, v)
        return out[0] if isinstance(out, tuple) else out  # newer versions add the log-sum-exp, or None in its place

    return opaque("flash_attention_4", kernel)


def _load_wide() -> Attend:
    _prepare()
    with vendor_errors():
        # The tile is an argument of this function alone; that it is not public is why the backend stands on its own.
        from flash_attn.cute.interface import _flash_attn_fwd

    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _flash_attn_fwd(q, k, v, tile_mn=_WIDE_TILE, mma_pv_is_rs=False)[0]

    return opaque("flash_attention_4_wide", kernel)


BACKEND = AttentionBackend(
    name="flash-attn-4",
    quality="exact",
    rejects=Limits(oldest=(9, 0), head_dim=128, head_dim_step=8, library="flash-attn-4").rejects,
    load=_load,
)
WIDE = AttentionBackend(
    name="flash-attn-4-wide",
    quality="exact",
    rejects=Limits(oldest=(9, 0), newest=(9, 0), head_dim=128, head_dim_step=8, library="flash-attn-4").rejects,
    load=_load_wide,
)
