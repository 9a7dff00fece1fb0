"""Matrices that stay in memory as their file stores them: their codes, and the scales that belong to these.

In a module such a layer `x` holds `x.codes` and, where there are any, `x.scale` in place of `x.weight`; `as_stored`
gives a checkpoint that has them under these names, to be read like any other tensors. What they stand for is computed
by `kernels/decode.py`, which loading uses as well: decoded early or late, the numbers are the same.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from .decode import FLOAT8, why_not
from .gguf_blocks import BLOCK_FORMATS
from .header import TensorInfo
from .read import Checkpoint

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coding:
    """How a matrix is stored. dtype: torch's name, or ggml's of its blocks. scale: the shape of its scales, if any."""

    dtype: str
    scale: Shape | None = None

    @property
    def codes_dtype(self) -> str:
        """Torch's dtype of the codes; blocks are bytes."""
        return "uint8" if self.dtype in BLOCK_FORMATS else self.dtype

    def codes_shape(self, shape: Shape) -> Shape:
        """Of the codes of a matrix (rows, columns)."""
        rows, columns = shape
        form = BLOCK_FORMATS.get(self.dtype)
        return (rows, columns // form.size * form.nbytes) if form else (rows, columns)

    def piece_bytes(self, shape: Shape) -> tuple[int, ...]:
        """Bytes of the codes of a matrix and of its scales, which lie in memory one after the other."""
        codes = math.prod(self.codes_shape(shape))
        return (codes,) if self.scale is None else (codes, 4 * math.prod(self.scale))


def coding_of(info: TensorInfo) -> Coding | None:
    """How a matrix is stored, `None` where it is plain numbers or cannot be decoded by torch on every device."""
    if len(info.shape) != 2 or why_not(info):
        return None
    if form := BLOCK_FORMATS.get(info.dtype):
        return Coding(dtype=info.dtype) if form.decode and info.shape[1] % form.size == 0 else None
    if info.dtype not in (*FLOAT8, "int8"):
        return None
    return Coding(dtype=info.dtype, scale=info.scale.shape if info.scale else None)


def as_stored(checkpoint: Checkpoint, layers: Mapping[str, Coding]) -> Checkpoint:
    """The checkpoint with codes and scales in place of the weights of some layers, given by their official names."""
    tensors = dict(checkpoint.tensors)
    for layer, coding in layers.items():
        info = tensors.pop(f"{layer}.weight")
        shape = coding.codes_shape(info.shape)
        tensors[f"{layer}.codes"] = replace(info, dtype=coding.codes_dtype, shape=shape, scale=None)
        if info.scale is not None:
            tensors[f"{layer}.scale"] = info.scale
    return replace(checkpoint, tensors=tensors)
