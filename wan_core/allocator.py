"""PyTorch's allocator of GPU memory, told how to keep its pieces; to be called before torch is imported.

Activations of sampling are pieces of one to two GiB in a handful of sizes. By default each is cut from a segment of a
fixed size, and what is left of it fits nothing: under a limit one H200 held 2.5 to 3.6 GiB that it could not use, and
ran out of memory where 1 GiB too much was free (docs/LOG.md, 2026-11-21). Segments that grow and shrink page by page
leave no such rests. Inside ComfyUI the host has chosen its allocator, and this is not called.
"""

import os

_NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def segments_grow() -> bool:
    """Whether PyTorch was told so, by us or by the user."""
    given = (os.environ.get(name, "") for name in _NAMES)
    return any("expandable_segments:true" in settings.replace(" ", "").lower() for settings in given)


def let_segments_grow() -> None:
    """Let segments grow page by page, unless the user has settings of their own for the allocator."""
    if not any(name in os.environ for name in _NAMES):
        os.environ[_NAMES[1]] = "expandable_segments:True"
