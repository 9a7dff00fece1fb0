"""The VAE's elementwise work in Triton kernels: `vae.TORCH` is what they compute. Importing this needs Triton.

All three kernels read and write each element once, in float32 inside. They want channels last: the channels of a pixel
are then one contiguous row, and pixels of consecutive frames follow one another.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from . import vae

# Elements that a program holds: with eight to sixteen per thread loads are 16 bytes wide and several are in flight.
_BLOCK = 4096
_NUM_WARPS = 8


@triton.jit
def _activate(
    x_pointer, bias_pointer, gamma_pointer, out_pointer, num_rows, x_batch, out_batch, root,
    C: tl.constexpr, HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    inside = (row < num_rows) & (column < C)
    x = tl.load(x_pointer + batch * x_batch + row * C + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        x += tl.load(bias_pointer + column, mask=column < C, other=0.0).to(tl.float32)
    gamma = tl.load(gamma_pointer + column, mask=column < C, other=0.0).to(tl.float32)
    length = tl.maximum(tl.sqrt(tl.sum(x * x, axis=1, keep_dims=True)), 1e-12)
    y = x * (root / length) * gamma
    y = y * tl.sigmoid(y)
    tl.store(out_pointer + batch * out_batch + row * C + column, y.to(out_pointer.dtype.element_ty), mask=inside)


@triton.jit
def _push(
    x_pointer, bias_pointer, gamma_pointer, planes_pointer, num_rows, root,
    C: tl.constexpr, HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One pixel is a row of three frames: the second and the third move up, the new one comes last."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    inside = (row < num_rows) & (column < C)
    first = planes_pointer + row * (3 * C) + column
    second = tl.load(first + C, mask=inside, other=0.0)
    third = tl.load(first + 2 * C, mask=inside, other=0.0)
    x = tl.load(x_pointer + row * C + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        x += tl.load(bias_pointer + column, mask=column < C, other=0.0).to(tl.float32)
    gamma = tl.load(gamma_pointer + column, mask=column < C, other=0.0).to(tl.float32)
    length = tl.maximum(tl.sqrt(tl.sum(x * x, axis=1, keep_dims=True)), 1e-12)
    y = x * (root / length) * gamma
    y = y * tl.sigmoid(y)
    # All of a row is read before any of it is written.
    tl.debug_barrier()
    tl.store(first, second, mask=inside)
    tl.store(first + C, third, mask=inside)
    tl.store(first + 2 * C, y.to(planes_pointer.dtype.element_ty), mask=inside)


@triton.jit
def _add(h_pointer, bias_pointer, x_pointer, num_elements, C: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < num_elements
    h = tl.load(h_pointer + at, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(x_pointer + at, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_pointer + at % C, mask=inside, other=0.0).to(tl.float32)
    tl.store(h_pointer + at, (h + bias + x).to(h_pointer.dtype.element_ty), mask=inside)


@triton.jit
def _interleave(
    corner_pointer, bias_pointer, out_pointer, num_columns, width,
    C: tl.constexpr, PIXELS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One row of the output, some of its pixels: out[2i + p, 2j + q] is phase (p, q) at the corner (i + p, j + q)."""
    row, frame = tl.program_id(1), tl.program_id(2).to(tl.int64)
    num_rows = tl.num_programs(1)
    i, p = row // 2, row % 2
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)[:, None]
    channel = tl.arange(0, COLUMNS)[None, :]
    j, q = pixel // 2, pixel % 2
    inside = (pixel < num_columns) & (channel < C)
    corner = (frame * (num_rows // 2 + 1) + i + p) * width + j + q
    found = tl.load(corner_pointer + (corner * 4 + 2 * p + q) * C + channel, mask=inside, other=0.0).to(tl.float32)
    found += tl.load(bias_pointer + channel, mask=channel < C, other=0.0).to(tl.float32)
    place = (frame * num_rows + row) * num_columns + pixel
    tl.store(out_pointer + place * C + channel, found.to(out_pointer.dtype.element_ty), mask=inside)


def activate(x: Tensor, bias: Tensor | None, gamma: Tensor, out: Tensor) -> None:
    """silu(norm(x + bias) * gamma) of x (B, C, T, H, W) to `out`; x stays what it is."""
    x = _channels_last(x)
    num_batches, num_channels, *size = x.shape
    num_rows = size[0] * size[1] * size[2]
    assert out.shape == x.shape and out.permute(0, 2, 3, 4, 1)[0].is_contiguous(), f"{x.shape} to {out.shape}"
    columns = triton.next_power_of_2(num_channels)
    rows = max(_BLOCK // columns, 1)
    with torch.cuda.device_of(x):
        _activate[(triton.cdiv(num_rows, rows), num_batches)](
            x, gamma if bias is None else bias, gamma, out, num_rows, x.stride(0), out.stride(0), num_channels**0.5,
            C=num_channels, HAS_BIAS=bias is not None, ROWS=rows, COLUMNS=columns, num_warps=_NUM_WARPS,
        )  # fmt: skip


def push(x: Tensor, bias: Tensor | None, gamma: Tensor, planes: Tensor) -> None:
    """silu(norm(x + bias) * gamma) of one frame x (B, C, 1, H, W) as the last of three in `planes` (B, 3 C, H, W)."""
    x = _channels_last(x)
    num_batches, num_channels, num_frames, height, width = x.shape
    assert num_frames == 1 and planes.is_contiguous(memory_format=torch.channels_last), f"{x.shape} to {planes.shape}"
    columns = triton.next_power_of_2(num_channels)
    rows = max(_BLOCK // columns, 1)
    num_rows = num_batches * height * width
    with torch.cuda.device_of(x):
        _push[(triton.cdiv(num_rows, rows),)](
            x, gamma if bias is None else bias, gamma, planes, num_rows, num_channels**0.5,
            C=num_channels, HAS_BIAS=bias is not None, ROWS=rows, COLUMNS=columns, num_warps=_NUM_WARPS,
        )  # fmt: skip


def add(h: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """h + bias + x in the memory of h."""
    h, x = _channels_last(h), _channels_last(x)
    with torch.cuda.device_of(h):
        _add[(triton.cdiv(h.numel(), _BLOCK),)](h, bias, x, h.numel(), C=h.shape[1], BLOCK=_BLOCK, num_warps=_NUM_WARPS)
    return h


def interleave(corners: Tensor, bias: Tensor) -> Tensor:
    """The corners (F, 4 O, H + 1, W + 1) of `vae.phases` in their places, with the bias: (F, O, 2H, 2W)."""
    num_frames, num_channels, height, width = corners.shape
    num_channels //= 4
    corners = corners.contiguous(memory_format=torch.channels_last)
    out = torch.empty(
        num_frames, num_channels, 2 * height - 2, 2 * width - 2,
        dtype=corners.dtype, device=corners.device, memory_format=torch.channels_last,
    )  # fmt: skip
    columns = triton.next_power_of_2(num_channels)
    pixels = max(_BLOCK // columns, 1)
    with torch.cuda.device_of(corners):
        _interleave[(triton.cdiv(out.shape[3], pixels), out.shape[2], num_frames)](
            corners, bias, out, out.shape[3], width, C=num_channels, PIXELS=pixels, COLUMNS=columns,
            num_warps=_NUM_WARPS,
        )  # fmt: skip
    return out


def enlarge_merged(frames: Tensor, merged: Tensor, bias: Tensor) -> Tensor:
    """`vae.enlarge_merged` with the interleaving as one pass."""
    return interleave(F.conv2d(frames, merged, padding=1), bias)


def _channels_last(x: Tensor) -> Tensor:
    """x itself where it came from cuDNN; a convolution without it may answer with channels first."""
    return x.contiguous(memory_format=torch.channels_last_3d)


TRITON = replace(
    vae.TORCH, name="triton", activate=activate, push=push, forms=vae.FORMS["triton"], add=add,
    prepare=vae.merged_weight, enlarge=enlarge_merged,
)  # fmt: skip
