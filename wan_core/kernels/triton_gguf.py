"""Blocks of GGUF to numbers as Triton kernels: each byte read once, each number written once.

PyTorch takes ten to fifteen operators for it, over float32 numbers. What these compute is `decode.decode`, to the last
bit: nothing is contracted into a fused multiply-add. Blocks start at any even byte, so halves are read as two bytes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .decode import KNOWN_BLOCKS


@triton.jit
def _half(pointer, inside):
    """The float16 at an address, as float32."""
    low = tl.load(pointer, mask=inside, other=0).to(tl.uint16)
    high = tl.load(pointer + 1, mask=inside, other=0).to(tl.uint16)
    return (low | (high << 8)).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _byte(pointer, inside):
    return tl.load(pointer, mask=inside, other=0).to(tl.int32)


@triton.jit
def decode_32(
    codes_pointer, place_pointer, num_blocks,
    HAS_OFFSET: tl.constexpr, HAS_FIFTH: tl.constexpr, NBYTES: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Q4_0, Q4_1, Q5_0, Q5_1: a scale, perhaps an offset, perhaps 32 fifth bits, 32 nibbles."""
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)[:, None]
    i = tl.arange(0, 16)[None, :]
    inside = block < num_blocks
    start, place = codes_pointer + block * NBYTES, place_pointer + block * 32 + i
    scale = _half(start, inside)
    packed = _byte(start + NBYTES - 16 + i, inside)
    low, high = packed & 15, packed >> 4
    if HAS_FIFTH:
        low |= ((_byte(start + NBYTES - 20 + i // 8, inside) >> (i % 8)) & 1) << 4
        high |= ((_byte(start + NBYTES - 18 + i // 8, inside) >> (i % 8)) & 1) << 4
    if HAS_OFFSET:
        offset = _half(start + 2, inside)
        first, second = scale * low.to(tl.float32) + offset, scale * high.to(tl.float32) + offset
    else:
        zero = 16 if HAS_FIFTH else 8
        first, second = scale * (low - zero).to(tl.float32), scale * (high - zero).to(tl.float32)
    tl.store(place, first.to(place_pointer.dtype.element_ty), mask=inside)
    tl.store(place + 16, second.to(place_pointer.dtype.element_ty), mask=inside)


@triton.jit
def decode_q8_0(codes_pointer, place_pointer, num_blocks, BLOCKS: tl.constexpr):
    """A scale and 32 numbers of 8 bits."""
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)[:, None]
    i = tl.arange(0, 32)[None, :]
    inside = block < num_blocks
    start = codes_pointer + block * 34
    code = tl.load(start + 2 + i, mask=inside, other=0).to(tl.int8, bitcast=True)
    number = _half(start, inside) * code.to(tl.float32)
    tl.store(place_pointer + block * 32 + i, number.to(place_pointer.dtype.element_ty), mask=inside)


@triton.jit
def decode_k(
    codes_pointer, place_pointer, num_blocks, HAS_FIFTH: tl.constexpr, NBYTES: tl.constexpr, BLOCKS: tl.constexpr
):
    """Q4_K, Q5_K: eight sub-blocks of 32. Two of them share 32 bytes of nibbles; `decode._k_scales` says the rest."""
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)[:, None, None]
    pair, i = tl.arange(0, 4)[None, :, None], tl.arange(0, 32)[None, None, :]
    inside = block < num_blocks
    start = codes_pointer + block * NBYTES
    scale_of_scales, scale_of_offsets = _half(start, inside), _half(start + 2, inside)
    packed = _byte(start + NBYTES - 128 + pair * 32 + i, inside)
    for half in tl.static_range(2):
        sub = 2 * pair + half
        first, second, last = (
            _byte(start + 4 + sub % 4, inside),
            _byte(start + 8 + sub % 4, inside),
            _byte(start + 12 + sub % 4, inside),
        )
        scale = tl.where(sub < 4, first & 63, (last & 15) | ((first >> 6) << 4)).to(tl.float32)
        offset = tl.where(sub < 4, second & 63, (last >> 4) | ((second >> 6) << 4)).to(tl.float32)
        code = (packed >> (4 * half)) & 15
        if HAS_FIFTH:
            code |= ((_byte(start + 16 + i, inside) >> sub) & 1) << 4
        number = (scale_of_scales * scale) * code.to(tl.float32) - scale_of_offsets * offset
        place = place_pointer + block * 256 + sub * 32 + i
        tl.store(place, number.to(place_pointer.dtype.element_ty), mask=inside)


@triton.jit
def decode_q2_k(codes_pointer, place_pointer, num_blocks, BLOCKS: tl.constexpr):
    """Two halves of four quarters of 32, which share 32 bytes of pairs of bits; every sixteen have scale and offset."""
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)[:, None, None]
    half, i = tl.arange(0, 2)[None, :, None], tl.arange(0, 32)[None, None, :]
    inside = block < num_blocks
    start = codes_pointer + block * 84
    scale_of_scales, scale_of_offsets = _half(start + 80, inside), _half(start + 82, inside)
    packed = _byte(start + 16 + half * 32 + i, inside)
    for quarter in tl.static_range(4):
        both = _byte(start + half * 8 + quarter * 2 + i // 16, inside)
        scale, offset = scale_of_scales * (both & 15).to(tl.float32), scale_of_offsets * (both >> 4).to(tl.float32)
        number = scale * ((packed >> (2 * quarter)) & 3).to(tl.float32) - offset
        place = place_pointer + block * 256 + half * 128 + quarter * 32 + i
        tl.store(place, number.to(place_pointer.dtype.element_ty), mask=inside)


@triton.jit
def decode_q3_k(codes_pointer, place_pointer, num_blocks, BLOCKS: tl.constexpr):
    """As Q2_K, with a third bit from the same 32 bytes for all; scales of six bits in twelve bytes, no offsets."""
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)[:, None, None]
    half, i = tl.arange(0, 2)[None, :, None], tl.arange(0, 32)[None, None, :]
    inside = block < num_blocks
    start = codes_pointer + block * 110
    scale_of_scales = _half(start + 108, inside)
    thirds = _byte(start + i, inside)
    packed = _byte(start + 32 + half * 32 + i, inside)
    for quarter in tl.static_range(4):
        code = ((packed >> (2 * quarter)) & 3) | (((thirds >> (4 * half + quarter)) & 1) << 2)
        at = half * 8 + quarter * 2 + i // 16
        low = (_byte(start + 96 + at % 8, inside) >> (4 * (at // 8))) & 15
        high = (_byte(start + 104 + at % 4, inside) >> (2 * (at // 4))) & 3
        scale = scale_of_scales * ((low | (high << 4)) - 32).to(tl.float32)
        place = place_pointer + block * 256 + half * 128 + quarter * 32 + i
        tl.store(place, (scale * (code - 4).to(tl.float32)).to(place_pointer.dtype.element_ty), mask=inside)


@triton.jit
def decode_q6_k(codes_pointer, place_pointer, num_blocks, BLOCKS: tl.constexpr):
    """Two halves of four quarters of 32. Quarters 0 and 2, 1 and 3 share nibbles; all four share 32 bytes of pairs."""
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)[:, None, None]
    run, i = tl.arange(0, 4)[None, :, None], tl.arange(0, 32)[None, None, :]
    half, quarter = run // 2, run % 2
    inside = block < num_blocks
    start = codes_pointer + block * 210
    scale_of_scales = _half(start + 208, inside)
    packed = _byte(start + run * 32 + i, inside)
    pairs = _byte(start + 128 + half * 32 + i, inside)
    for upper in tl.static_range(2):
        at = quarter + 2 * upper
        code = ((packed >> (4 * upper)) & 15) | (((pairs >> (2 * at)) & 3) << 4)
        scale = tl.load(start + 192 + half * 8 + at * 2 + i // 16, mask=inside, other=0).to(tl.int8, bitcast=True)
        number = (scale_of_scales * scale.to(tl.float32)) * (code - 32).to(tl.float32)
        place = place_pointer + block * 256 + half * 128 + at * 32 + i
        tl.store(place, number.to(place_pointer.dtype.element_ty), mask=inside)


# By ggml's name: the kernel, and what it is told of the format.
KERNELS = {
    "Q4_0": (decode_32, {"HAS_OFFSET": False, "HAS_FIFTH": False, "NBYTES": 18}),
    "Q4_1": (decode_32, {"HAS_OFFSET": True, "HAS_FIFTH": False, "NBYTES": 20}),
    "Q5_0": (decode_32, {"HAS_OFFSET": False, "HAS_FIFTH": True, "NBYTES": 22}),
    "Q5_1": (decode_32, {"HAS_OFFSET": True, "HAS_FIFTH": True, "NBYTES": 24}),
    "Q8_0": (decode_q8_0, {}),
    "Q2_K": (decode_q2_k, {}),
    "Q3_K": (decode_q3_k, {}),
    "Q4_K": (decode_k, {"HAS_FIFTH": False, "NBYTES": 144}),
    "Q5_K": (decode_k, {"HAS_FIFTH": True, "NBYTES": 176}),
    "Q6_K": (decode_q6_k, {}),
}
_PROGRAM_NUMBERS = 4096


def decode_blocks(place: Tensor, codes: Tensor, form: str) -> None:
    """Write the numbers of whole blocks, given as bytes, to their place: both contiguous, of any shape."""
    (kernel, told), size = KERNELS[form], KNOWN_BLOCKS[form].size
    num_blocks, blocks = place.numel() // size, _PROGRAM_NUMBERS // size
    with torch.cuda.device_of(codes):
        kernel[(triton.cdiv(num_blocks, blocks),)](
            codes, place, num_blocks, **told, BLOCKS=blocks, enable_fp_fusion=False
        )
