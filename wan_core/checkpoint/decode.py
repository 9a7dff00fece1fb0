"""From stored bytes to numbers: value = stored number times scale, where there is one.

The scale of a tensor is one number, or one for each row (out feature) of a matrix. The product is taken in float32 and
rounded once, to the dtype of its place. Everything happens on the device that the bytes are on.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.decode import decode
from . import gguf_blocks
from .gguf_blocks import BLOCK_FORMATS, decode_by_package
from .header import FLOATS, TensorInfo

FLOAT8 = ("float8_e4m3fn", "float8_e5m2")


@dataclass(frozen=True, slots=True)
class Grain:
    """The smallest part of a tensor that can be decoded by itself, in numbers and in bytes."""

    size: int
    nbytes: int


def why_not(info: TensorInfo) -> str | None:
    """Why a tensor cannot be decoded, as the end of a sentence about its file; `None` where it can."""
    if info.dtype in BLOCK_FORMATS:
        return gguf_blocks.why_not(info.dtype)
    if info.dtype not in (*FLOATS, *FLOAT8, "int8"):
        return f"holds weights as {info.dtype}, which is not decoded here"
    if info.dtype == "int8" and info.scale is None:
        return "holds weights as int8 without their scales"
    if info.scale is not None and not _fits(info, info.scale):
        return f"holds scales of shape {info.scale.shape} for weights of shape {info.shape}, expected one or one a row"
    return None


def is_stored_as(info: TensorInfo, dtype: torch.dtype) -> bool:
    """Whether the stored bytes are the numbers in this dtype."""
    return info.scale is None and info.dtype == str(dtype).removeprefix("torch.")


def value_dtype(info: TensorInfo) -> torch.dtype:
    """The dtype that holds a tensor as it is stored, float32 for what is encoded."""
    return torch.float32 if info.scale is not None or info.dtype in BLOCK_FORMATS else getattr(torch, info.dtype)


def grain(info: TensorInfo) -> Grain:
    """A number, a block, or where rows have scales a row."""
    if form := BLOCK_FORMATS.get(info.dtype):
        return Grain(form.size, form.nbytes)
    itemsize = info.nbytes // math.prod(info.shape)
    row = math.prod(info.shape[1:]) if info.scale is not None and math.prod(info.scale.shape) > 1 else 1
    return Grain(row, row * itemsize)


def decode_into(place: Tensor, raw: Tensor, info: TensorInfo, scale: Tensor | None, first: int) -> None:
    """Write the numbers of some grains of a tensor to their place (n,), of any float dtype.

    raw: their bytes (n,) uint8. scale: all of the tensor's scales, flat, float32. first: index of the first grain.
    """
    form = BLOCK_FORMATS.get(info.dtype)
    codes = raw.view(-1, form.nbytes) if form else raw.view(getattr(torch, info.dtype)).view(-1, grain(info).size)
    place = place.view(codes.shape[0], -1)
    if scale is not None and scale.numel() > 1:
        scale = scale[first : first + codes.shape[0]]
    if form and not form.decode:
        place.copy_(decode_by_package(codes, info.dtype))
    elif codes.element_size() == 1:
        decode(place, codes, scale, info.dtype)
    elif scale is None:
        place.copy_(codes)
    else:
        place.copy_(codes.float() * scale[:, None])


def _fits(info: TensorInfo, scale: TensorInfo) -> bool:
    count = math.prod(scale.shape)
    by_row = bool(info.shape) and scale.shape in ((info.shape[0],), (info.shape[0], *(1 for _ in info.shape[1:])))
    return scale.dtype in FLOATS and scale.scale is None and (count == 1 or by_row)
