"""What codes stand for: numbers of 8 bits with their scales, and the common block formats of GGUF, in PyTorch.

A block is a run of 32 or 256 numbers of one row that share a scale, or a scale and an offset, in float16; the K formats
divide 256 into sub-blocks with narrow scales of their own. Nibbles come in two halves: the low ones of a run of bytes
are the first numbers, the high ones the rest.
https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h

This is the definition, on any device; `triton_decode` computes the same to the last bit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

Blocks = Tensor  # (n, bytes of a block) uint8

# Of blocks decoded at once, so that their float32 numbers, several times over, stay small.
_PIECE_NUMBERS = 1 << 24


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """Numbers and bytes of a block. decode: (n, nbytes) uint8 -> (n, size) float32, `None` where that is not known."""

    size: int
    nbytes: int
    decode: Callable[[Blocks], Tensor] | None = None


def decode(place: Tensor, codes: Tensor, scale: Tensor | None, form: str) -> None:
    """Write what codes stand for to their place (R, C), of any float dtype.

    form: a name of `KNOWN_BLOCKS`, whose codes are bytes (R, B) uint8, a row's blocks one after the other; any other
    name is that of a dtype of 8 bits, whose codes are (R, C). scale: of the latter, (1,) or (R,) float32.

    Every float dtype holds what 8 bits can say, so nothing wider has to stand in between; a number is rounded once.
    Blocks are decoded in pieces. A compiler fuses their float32 numbers away by itself.
    """
    if form not in KNOWN_BLOCKS:
        place.copy_(codes)
        if scale is not None:
            place.mul_(scale[:, None])
        return
    known, (num_rows, num_columns) = KNOWN_BLOCKS[form], place.shape
    assert known.decode is not None
    step = num_rows if torch.compiler.is_compiling() else max(_PIECE_NUMBERS // num_columns, 1)
    for first in range(0, num_rows, step):
        rows = slice(first, min(first + step, num_rows))
        place[rows] = known.decode(codes[rows].reshape(-1, known.nbytes)).view(-1, num_columns)


def _half(blocks: Blocks, start: int) -> Tensor:
    """The float16 at a byte of each block, (n, 1) float32."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor) -> Tensor:
    """(..., b) bytes -> (..., 2 b): low nibbles, then high ones."""
    return torch.cat((packed & 15, packed >> 4), dim=-1)


def _bits(packed: Blocks) -> Tensor:
    """(n, b) bytes -> (n, 8 b) bits, the lowest first."""
    places = torch.arange(8, device=packed.device, dtype=torch.uint8)
    return rearrange((packed[..., None] >> places) & 1, "n b i -> n (b i)")


def _q4_0(blocks: Blocks) -> Tensor:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).float() - 8)


def _q4_1(blocks: Blocks) -> Tensor:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).float() + _half(blocks, 2)


def _q5_0(blocks: Blocks) -> Tensor:
    fives = _nibbles(blocks[:, 6:]) | (_bits(blocks[:, 2:6]) << 4)
    return _half(blocks, 0) * (fives.float() - 16)


def _q5_1(blocks: Blocks) -> Tensor:
    fives = _nibbles(blocks[:, 8:]) | (_bits(blocks[:, 4:8]) << 4)
    return _half(blocks, 0) * fives.float() + _half(blocks, 2)


def _q8_0(blocks: Blocks) -> Tensor:
    return _half(blocks, 0) * blocks[:, 2:].view(torch.int8).float()


def _k_scales(packed: Blocks) -> tuple[Tensor, Tensor]:
    """Scales and offsets of eight sub-blocks, (n, 8) each, six bits apiece in twelve bytes.

    The first four of each stand in the low six bits of the first eight bytes. Of the others the last four bytes hold
    the low four bits, and the high two bits are those left over in the first eight bytes.
    """
    first, second, low = packed.split(4, dim=-1)
    scales = torch.cat((first & 63, (low & 15) | ((first >> 6) << 4)), dim=-1)
    offsets = torch.cat((second & 63, (low >> 4) | ((second >> 6) << 4)), dim=-1)
    return scales.float(), offsets.float()


def _scaled(scales: Tensor, offsets: Tensor, numbers: Tensor) -> Tensor:
    """Sub-blocks (n, s, i) of numbers times their scales (n, s), less their offsets -> (n, s i)."""
    return (scales[..., None] * numbers.float() - offsets[..., None]).flatten(1)


def _eights(blocks: Blocks, numbers: Tensor) -> Tensor:
    """The common end of Q4_K and Q5_K, with their numbers (n, 8, 32)."""
    scales, offsets = _k_scales(blocks[:, 4:16])
    return _scaled(_half(blocks, 0) * scales, _half(blocks, 2) * offsets, numbers)


def _q4_k(blocks: Blocks) -> Tensor:
    groups = rearrange(blocks[:, 16:], "n (g b) -> n g b", g=4)
    return _eights(blocks, rearrange(_nibbles(groups), "n g (h i) -> n (g h) i", h=2))


def _q5_k(blocks: Blocks) -> Tensor:
    groups = rearrange(blocks[:, 48:], "n (g b) -> n g b", g=4)
    fours = rearrange(_nibbles(groups), "n g (h i) -> n (g h) i", h=2)
    # The fifth bits of sub-block s are bit s of each of 32 bytes.
    fifths = rearrange(_bits(blocks[:, 16:48]), "n (i s) -> n s i", s=8)
    return _eights(blocks, fours | (fifths << 4))


def _pairs(packed: Tensor) -> Tensor:
    """(..., b) bytes -> (..., 4, b) pairs of their bits, the lowest first."""
    places = torch.arange(0, 8, 2, device=packed.device, dtype=torch.uint8)[:, None]
    return (packed[..., None, :] >> places) & 3


def _quarters(packed: Blocks) -> Tensor:
    """(n, 64) bytes -> (n, 2, 4, 32) pairs of bits: two halves of 32 bytes, four quarters in each."""
    return _pairs(rearrange(packed, "n (h i) -> n h i", h=2))


def _sixteens(numbers: Tensor) -> Tensor:
    """(n, 2, 4, 32) -> (n, 16, 16): the sub-blocks of Q2_K, Q3_K and Q6_K."""
    return rearrange(numbers, "n h q (s i) -> n (h q s) i", s=2)


def _q2_k(blocks: Blocks) -> Tensor:
    scales = _half(blocks, 80) * (blocks[:, :16] & 15).float()
    offsets = _half(blocks, 82) * (blocks[:, :16] >> 4).float()
    return _scaled(scales, offsets, _sixteens(_quarters(blocks[:, 16:80])))


def _q3_k(blocks: Blocks) -> Tensor:
    # The third bits of each 32 numbers are one bit of each of the first 32 bytes.
    thirds = rearrange(_bits(blocks[:, :32]), "n (i h q) -> n h q i", h=2, q=4)
    threes = _quarters(blocks[:, 32:96]) | (thirds << 2)
    # Sixteen scales of six bits: nibbles in eight bytes, pairs of high bits in four.
    sixes = _nibbles(blocks[:, 96:104]) | (_pairs(blocks[:, 104:108]).flatten(1) << 4)
    scales = _half(blocks, 108) * (sixes.float() - 32)
    return (scales[..., None] * (_sixteens(threes).float() - 4)).flatten(1)


def _q6_k(blocks: Blocks) -> Tensor:
    # Two halves of 128 numbers: 64 bytes of nibbles, and 32 bytes of pairs of high bits.
    low = rearrange(blocks[:, :128], "n (h q i) -> n h q i", h=2, q=2)
    sixes = torch.cat((low & 15, low >> 4), dim=2) | (_quarters(blocks[:, 128:192]) << 4)
    scales = _half(blocks, 208) * blocks[:, 192:208].view(torch.int8).float()
    return (scales[..., None] * (_sixteens(sixes).float() - 32)).flatten(1)


# By ggml's name: those whose numbers are computed here.
KNOWN_BLOCKS: Mapping[str, BlockFormat] = {
    "Q4_0": BlockFormat(32, 18, _q4_0),
    "Q4_1": BlockFormat(32, 20, _q4_1),
    "Q5_0": BlockFormat(32, 22, _q5_0),
    "Q5_1": BlockFormat(32, 24, _q5_1),
    "Q8_0": BlockFormat(32, 34, _q8_0),
    "Q2_K": BlockFormat(256, 84, _q2_k),
    "Q3_K": BlockFormat(256, 110, _q3_k),
    "Q4_K": BlockFormat(256, 144, _q4_k),
    "Q5_K": BlockFormat(256, 176, _q5_k),
    "Q6_K": BlockFormat(256, 210, _q6_k),
}
