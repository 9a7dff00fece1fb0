"""The block formats of GGUF: what they take in a file, and who knows the numbers in them.

The common formats are decoded in `kernels/decode.py`, on any device, so that blocks can go to a GPU as they are stored.
The rest is left to the optional package `gguf`, on the host.
"""

import importlib.util
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import BROKEN_LIBRARY, CheckpointError
from ..kernels.decode import KNOWN_BLOCKS, BlockFormat


def why_not(name: str) -> str | None:
    """Why blocks of this format cannot be decoded here, as the end of a sentence; `None` where they can."""
    if BLOCK_FORMATS[name].decode is None and importlib.util.find_spec("gguf") is None:
        return f"holds {name} blocks, which need the package gguf: install it with `pip install gguf`"
    return None


def decode_by_package(blocks: Tensor, name: str) -> Tensor:
    """The numbers (n, size) float32, on the host, of blocks (n, nbytes) uint8 that are left to the package."""
    try:
        import gguf
    except BROKEN_LIBRARY as error:
        raise CheckpointError(
            f"{name} blocks need the package gguf, which this Python cannot import ({error}); install it with "
            "`pip install gguf`"
        ) from error
    try:
        return torch.from_numpy(gguf.dequantize(blocks.cpu().numpy(), gguf.GGMLQuantizationType[name]))
    except (KeyError, NotImplementedError) as error:
        raise CheckpointError(f"{name} blocks are unknown to this version of the package gguf; update it") from error


# By ggml's name. Those without a function to decode them are left to the package.
BLOCK_FORMATS: Mapping[str, BlockFormat] = {
    **KNOWN_BLOCKS,
    "IQ2_XXS": BlockFormat(256, 66),
    "IQ2_XS": BlockFormat(256, 74),
    "IQ2_S": BlockFormat(256, 82),
    "IQ3_XXS": BlockFormat(256, 98),
    "IQ3_S": BlockFormat(256, 110),
    "IQ1_S": BlockFormat(256, 50),
    "IQ1_M": BlockFormat(256, 56),
    "IQ4_NL": BlockFormat(32, 18),
    "IQ4_XS": BlockFormat(256, 136),
    "TQ1_0": BlockFormat(256, 54),
    "TQ2_0": BlockFormat(256, 66),
    "MXFP4": BlockFormat(32, 17),
    "NVFP4": BlockFormat(64, 36),
    "Q1_0": BlockFormat(128, 18),
}
