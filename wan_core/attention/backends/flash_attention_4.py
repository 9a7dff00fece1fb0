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
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from threading import Lock
from types import ModuleType

import torch
from torch import Tensor

from ...hardware import cache_folder
from ...importing import collector_paused
from ..interface import Attend, AttentionBackend
from .limits import Limits
from .opaque import opaque, vendor_errors

_PUBLIC, _INNER = "flash_attn.cute", "flash_attn.cute.interface"
# Queries and keys of a block; 192 x 112 is the largest that fits shared memory with its probabilities.
_WIDE_TILE = (192, 112)
# What is changed for the time of an import is changed by one thread at a time.
_IMPORTING = Lock()


def _prepare() -> None:
    """To be called before the library is imported."""
    # It warns of an argument of its own whenever it compiles, once for each kernel and in several lines.
    warnings.filterwarnings("ignore", message="Argument aux_data .* cannot be converted")
    # Read once, at the import; whoever has set them has reasons.
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", str(cache_folder() / "flash-attn-4"))


def _import(module: str) -> ModuleType:
    _prepare()
    with vendor_errors(), _IMPORTING:
        if module in sys.modules:
            return import_module(module)
        with _compiler_left_alone(), collector_paused():
            return import_module(module)


@contextmanager
def _compiler_left_alone() -> Iterator[None]:
    """Make `torch.compiler.disable` PyTorch's own lazy form of it, which does the same at the first call.

    A library below this one (quack) decorates two functions with it that nothing here calls, and for that PyTorch
    imports its compiler: 1.9 of the 3.0 seconds of CPU time that importing FlashAttention 4 took (torch 2.13).
    """
    lazy = getattr(torch, "_disable_dynamo", None)
    if lazy is None:
        yield
        return
    eager = torch.compiler.disable
    torch.compiler.disable = lambda fn=None, recursive=True, *, reason=None: lazy(fn, recursive)
    try:
        yield
    finally:
        torch.compiler.disable = eager


def _load() -> Attend:
    with vendor_errors():
        flash_attn_func = _import(_PUBLIC).flash_attn_func

    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = flash_attn_func(q, k, v)
        return out[0] if isinstance(out, tuple) else out  # newer versions add the log-sum-exp, or None in its place

    return opaque("flash_attention_4", kernel)


def _load_wide() -> Attend:
    # The tile is an argument of this function alone; that it is not public is why the backend stands on its own.
    with vendor_errors():
        forward = _import(_INNER)._flash_attn_fwd

    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return forward(q, k, v, tile_mn=_WIDE_TILE, mma_pv_is_rs=False)[0]

    return opaque("flash_attention_4_wide", kernel)


BACKEND = AttentionBackend(
    name="flash-attn-4",
    quality="exact",
    rejects=Limits(oldest=(9, 0), head_dim=128, head_dim_step=8, library="flash-attn-4").rejects,
    load=_load,
    imports=partial(_import, _PUBLIC),
)
WIDE = AttentionBackend(
    name="flash-attn-4-wide",
    quality="exact",
    rejects=Limits(oldest=(9, 0), newest=(9, 0), head_dim=128, head_dim_step=8, library="flash-attn-4").rejects,
    load=_load_wide,
    imports=partial(_import, _INNER),
)
