"""The block's fused kernels against their definition in float32, on a GPU, or anywhere in Triton's interpreter.

Without a card: `TRITON_INTERPRET=1 pytest tests/kernels/test_block.py`, where Triton is installed.
"""

import os

import pytest
import torch
from torch import Tensor

from wan_core.kernels import block, decode
from wan_core.linear.stored import Storage, StoredLinear
from wan_core.models.layers import Linear

pytest.importorskip("triton")
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not IS_INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA card, or TRITON_INTERPRET=1", allow_module_level=True)

from wan_core.kernels.triton_block import TRITON  # noqa: E402
from wan_core.kernels.triton_gguf import KERNELS  # noqa: E402

DEVICE = "cpu" if IS_INTERPRETED else "cuda"
EPS = 1e-6
BATCH, TOKENS, HEADS = 2, 7, 6
DIMS = [192, 768] if IS_INTERPRETED else [192, 1536, 5120]
each_dim = pytest.mark.parametrize("dim", DIMS)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
each_float = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE)


def error(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def assert_as_exact(got: Tensor, expected: Tensor) -> None:
    """One rounding, no more: 2^-9 is the largest relative error of bfloat16, 2^-24 that of float32."""
    assert error(got, expected) < (2.0**-8 if got.dtype == torch.bfloat16 else 1e-6)


@pytest.fixture(params=["per sample", "per token", "one for all"])
def vectors(request):
    """Makes three vectors of modulation: slices of one tensor, as the block has them."""

    def make(dim: int) -> tuple[Tensor, Tensor, Tensor]:
        if request.param == "one for all":
            return tuple(draw(3, dim))
        return draw(BATCH, 1 if request.param == "per sample" else TOKENS, 3, dim).unbind(dim=2)

    return make


@each_dim
@each_dtype
def test_norm(dim, dtype, vectors):
    x, (scale, shift, _) = 3 + draw(BATCH, TOKENS, dim), vectors(dim)
    expected = block.norm(x, scale, shift, EPS, torch.float32)
    assert_as_exact(TRITON.norm(x, scale, shift, EPS, dtype), expected)


@each_dim
@each_dtype
@pytest.mark.parametrize("is_gated", [True, False])
def test_sum_and_its_norm(dim, dtype, is_gated, vectors):
    x, branch, (scale, shift, gate) = draw(BATCH, TOKENS, dim), draw(BATCH, TOKENS, dim).to(dtype), vectors(dim)
    arguments = (x, branch, gate if is_gated else None, scale, shift, EPS)
    total, normed = TRITON.add_norm(*arguments, dtype)
    for got, expected in zip((total, normed), block.add_norm(*arguments, torch.float32), strict=True):
        assert_as_exact(got, expected)
    assert torch.equal(TRITON.add(*arguments[:3]), total)


def test_the_norm_is_that_of_the_stream_as_it_is_kept():
    x, branch = draw(1, 3, 192).bfloat16(), draw(1, 3, 192).bfloat16()
    ones, zeros = torch.ones(192, device=DEVICE), torch.zeros(192, device=DEVICE)
    kept, normed = TRITON.add_norm(x, branch, None, ones, zeros, EPS, torch.float32)
    torch.testing.assert_close(normed, TRITON.norm(kept, ones, zeros, EPS, torch.float32), rtol=0, atol=0)


@each_dim
@each_dtype
@pytest.mark.parametrize("is_rotated", [True, False])
@pytest.mark.parametrize("is_sliced", [True, False])
def test_rms_norm_and_rotation(dim, dtype, is_rotated, is_sliced):
    wide = draw(BATCH, TOKENS, 3 * dim).to(dtype)
    x = wide[..., dim : 2 * dim] if is_sliced else wide[..., :dim].contiguous()
    tables = tuple(draw(2, TOKENS, 1, dim // HEADS // 2)) if is_rotated and dim % HEADS == 0 else None
    heads = HEADS if dim % HEADS == 0 else 40
    weight = draw(dim)
    expected = block.rms_norm(x, weight, heads, tables, EPS, torch.float32)
    assert_as_exact(TRITON.rms_norm(x, weight, heads, tables, EPS, dtype), expected)


@each_float
@pytest.mark.parametrize("form", ["float8_e4m3fn", "float8_e5m2", "int8"])
@pytest.mark.parametrize("num_scales", [0, 1, 259])
def test_codes_of_8_bits_are_decoded_to_the_same_bits(dtype, form, num_scales):
    """All 256 codes, not-a-number, infinity and the smallest among them, in rows that no block of a kernel divides."""
    codes = (
        torch.arange(259 * 1100).remainder(256).to(torch.uint8).view(getattr(torch, form)).view(259, 1100).to(DEVICE)
    )
    scale = None if num_scales == 0 else draw(num_scales)
    got, expected = (torch.full((259, 1100), 7.0, dtype=dtype, device=DEVICE) for _ in range(2))
    decode.decode(expected, codes, scale, form)
    TRITON.decode(got, codes, scale, form)
    assert_same_bits(got, expected)


@each_float
@pytest.mark.parametrize("form", decode.KNOWN_BLOCKS)
@pytest.mark.parametrize("rows", [1, 37])
def test_blocks_of_gguf_are_decoded_to_the_same_bits(dtype, form, rows):
    """Any bytes, infinite scales among them, in numbers of blocks that no program of a kernel divides."""
    known = decode.KNOWN_BLOCKS[form]
    bytes_of_a_row = 3 * 256 // known.size * known.nbytes
    codes = torch.randint(256, (rows, bytes_of_a_row), generator=torch.Generator().manual_seed(rows)).to(torch.uint8)
    # Every second row starts at an odd multiple of two bytes, and the whole at one.
    codes = torch.cat((codes.new_zeros(2), codes.flatten())).to(DEVICE)[2:].view(rows, bytes_of_a_row)
    got, expected = (torch.full((rows + 1, 768), 7.0, dtype=dtype, device=DEVICE) for _ in range(2))
    decode.decode(expected[:rows], codes, None, form)
    TRITON.decode(got[:rows], codes, None, form)
    assert expected[:rows].isfinite().float().mean() > 0.2
    assert_same_bits(got, expected)  # nothing is written behind the last row


def test_every_form_that_may_stay_stored_has_a_kernel():
    """Nothing goes another way in silence, and takes memory that no plan has counted."""
    assert KERNELS.keys() == decode.KNOWN_BLOCKS.keys()
    with pytest.raises(AssertionError):
        TRITON.decode(torch.empty(5, 8, device=DEVICE), torch.zeros(5, 8, device=DEVICE), None, "uint8")


def assert_same_bits(got: Tensor, expected: Tensor) -> None:
    """As far as the interpreter allows: it cuts numbers off where a card rounds them to bfloat16."""
    rtol = 2.0**-7 if IS_INTERPRETED and got.dtype == torch.bfloat16 else 0.0
    torch.testing.assert_close(got, expected, rtol=rtol, atol=0, equal_nan=True)


@pytest.mark.gpu
def test_gelu_behind_a_layer_that_keeps_codes_is_that_behind_its_decoded_weight():
    dtype = torch.float8_e4m3fn
    storage = Storage(codes=(2048, 1024), dtype=dtype, scale=(), form="float8_e4m3fn", decode=TRITON.decode)
    with torch.device(DEVICE):
        stored = StoredLinear(1024, 2048, storage, torch.bfloat16, bias=True)
        plain = Linear(1024, 2048).bfloat16().requires_grad_(False)
        stored.codes.copy_((30 * torch.randn(2048, 1024)).to(dtype))
        stored.scale.fill_(1e-3)
        stored.bias.copy_(plain.bias)
        plain.weight.copy_(stored.weight)
        x = torch.randn(1, 512, 1024).bfloat16()
    assert vars(type(stored))["is_plain"]
    assert torch.equal(TRITON.expand(stored, x), TRITON.expand(plain, x))


@pytest.mark.gpu
def test_gelu_in_the_epilogue_is_the_tanh_form():
    with torch.device(DEVICE):
        linear = Linear(1024, 2048).bfloat16().requires_grad_(False)
        x = 2 * torch.randn(1, 512, 1024).bfloat16()
    expected = torch.nn.functional.gelu(linear.double()(x.double()), approximate="tanh")
    linear.bfloat16()
    assert type(linear).is_plain
    apart, within = (error(kernels.expand(linear, x), expected) for kernels in (block.TORCH, TRITON))
    assert within <= 1.1 * apart
