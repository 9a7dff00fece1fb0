"""Codes of 8 bits to numbers as one Triton kernel: a byte read, a number written. What it computes is `decode.decode`.

PyTorch reads and writes the numbers once more to multiply them, in a kernel for mixed dtypes. Floats of 8 bits are
taken apart here by shifting their bits into those of a float16, which is exact, and so runs on cards without them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_gguf import KERNELS, decode_blocks

_FORMS = ("float8_e4m3fn", "float8_e5m2", "int8")
_ROWS, _COLUMNS = 4, 1024


@triton.jit
def fused_decode(
    codes_pointer, scale_pointer, place_pointer, num_rows, num_columns,
    FORM: tl.constexpr, HAS_SCALE: tl.constexpr, BY_ROW: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < num_rows) & (column < num_columns)
    code = tl.load(codes_pointer + row * num_columns + column, mask=inside, other=0)
    if FORM == "float8_e4m3fn":
        # Sign, exponent and mantissa in the places of a float16, whose exponents count from another zero: 2^8 less.
        bits = ((code & 0x80).to(tl.uint16) << 8) | ((code & 0x7F).to(tl.uint16) << 7)
        number = bits.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
        number = tl.where((code & 0x7F) == 0x7F, float("nan"), number)
    elif FORM == "float8_e5m2":
        number = (code.to(tl.uint16) << 8).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        number = code.to(tl.float32)
    if HAS_SCALE:
        if BY_ROW:
            number *= tl.load(scale_pointer + row, mask=row < num_rows, other=0.0)
        else:
            number *= tl.load(scale_pointer)
    tl.store(place_pointer + row * num_columns + column, number.to(place_pointer.dtype.element_ty), mask=inside)


def decode(place: Tensor, codes: Tensor, scale: Tensor | None, form: str) -> None:
    """Write what codes stand for to their place, as `decode.decode` does; both are contiguous."""
    assert codes.is_contiguous() and place.is_contiguous(), "kernels go through memory in its order"
    if form in KERNELS:
        decode_blocks(place, codes, form)
    else:
        _decode_bytes(place, codes, scale, form)


def _decode_bytes(place: Tensor, codes: Tensor, scale: Tensor | None, form: str) -> None:
    assert form in _FORMS, form
    num_rows, num_columns = codes.shape
    with torch.cuda.device_of(codes):
        # A pointer that is not used is the place's: Triton wants a tensor.
        fused_decode[(triton.cdiv(num_rows, _ROWS), triton.cdiv(num_columns, _COLUMNS))](
            codes if form == "int8" else codes.view(torch.uint8), place if scale is None else scale, place,
            num_rows, num_columns, FORM=form, HAS_SCALE=scale is not None,
            BY_ROW=scale is not None and scale.numel() > 1, ROWS=_ROWS, COLUMNS=_COLUMNS,
        )  # fmt: skip
