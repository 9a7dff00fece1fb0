"""Causal 3x3x3 convolutions as Triton kernels, to be held against cuDNN's: a matrix product of shifted rows.

A window (T + 2, H, W, C) in channels last is a matrix of pixels by channels, and every tap of the kernel reads the same
rows shifted by a constant. `masked` reads by pointers and masks the border; `padded` wants windows with a border of
zeros (T + 2, H + 2, W + 2, C) and reads whole blocks by the tensor memory engine (outputs there are not stored).
Blocks are powers of two, channels are not: columns are split in two blocks, 96 = 64 + 32 and 192 = 128 + 64.
"""
# ruff: noqa: N803, PLR0913, E741 - kernels name their sizes as the papers do

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

_SPLIT = {96: (64, 32), 192: (128, 64), 384: (128, 0)}


@triton.jit
def _masked(
    x_pointer, weight_pointer, out_pointer, num_rows, height, width,
    C: tl.constexpr, O: tl.constexpr, M: tl.constexpr, K: tl.constexpr, K2: tl.constexpr,
    N1: tl.constexpr, N2: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(1) * (N1 + N2)
    row = tl.program_id(0) * M + tl.arange(0, M)
    pixel = row % (height * width)
    h, w = pixel // width, pixel % width
    k, n1 = tl.arange(0, K), first + tl.arange(0, N1)
    if K2 > 0:
        k2 = K + tl.arange(0, K2)
    acc1 = tl.zeros((M, N1), tl.float32)
    if N2 > 0:
        n2 = first + N1 + tl.arange(0, N2)
        acc2 = tl.zeros((M, N2), tl.float32)
    for step in range(27 * (C // (K + K2))):
        tap, c = step // (C // (K + K2)), step % (C // (K + K2)) * (K + K2)
        dt, dh, dw = tap // 9, tap // 3 % 3 - 1, tap % 3 - 1
        inside = (h + dh >= 0) & (h + dh < height) & (w + dw >= 0) & (w + dw < width) & (row < num_rows)
        source = row + (dt * height + dh) * width + dw
        a = tl.load(x_pointer + source[:, None] * C + c + k[None, :], mask=inside[:, None], other=0.0)
        at = weight_pointer + (tap * C + c + k[:, None]) * O
        acc1 = tl.dot(a, tl.load(at + n1[None, :]), acc1)
        if N2 > 0:
            acc2 = tl.dot(a, tl.load(at + n2[None, :]), acc2)
        if K2 > 0:
            a2 = tl.load(x_pointer + source[:, None] * C + c + k2[None, :], mask=inside[:, None], other=0.0)
            at2 = weight_pointer + (tap * C + c + k2[:, None]) * O
            acc1 = tl.dot(a2, tl.load(at2 + n1[None, :]), acc1)
            if N2 > 0:
                acc2 = tl.dot(a2, tl.load(at2 + n2[None, :]), acc2)
    place = out_pointer + row[:, None] * O
    inside = row[:, None] < num_rows
    tl.store(place + n1[None, :], acc1.to(out_pointer.dtype.element_ty), mask=inside)
    if N2 > 0:
        tl.store(place + n2[None, :], acc2.to(out_pointer.dtype.element_ty), mask=inside)


@triton.jit
def _padded(
    x, x2, weight1, weight2, weight12, weight22, out_pointer, num_rows, height, width,
    C: tl.constexpr, O: tl.constexpr, M: tl.constexpr, K: tl.constexpr, K2: tl.constexpr,
    N1: tl.constexpr, N2: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(1) * (N1 + N2)
    start = tl.program_id(0) * M
    acc1 = tl.zeros((M, N1), tl.float32)
    if N2 > 0:
        acc2 = tl.zeros((M, N2), tl.float32)
    for step in range(27 * (C // (K + K2))):
        tap, c = step // (C // (K + K2)), step % (C // (K + K2)) * (K + K2)
        shift = (tap // 9 * (height + 2) + tap // 3 % 3) * (width + 2) + tap % 3
        a = x.load([start + shift, c])
        acc1 = tl.dot(a, weight1.load([tap * C + c, first]), acc1)
        if N2 > 0:
            acc2 = tl.dot(a, weight2.load([tap * C + c, first + N1]), acc2)
        if K2 > 0:
            a2 = x2.load([start + shift, c + K])
            acc1 = tl.dot(a2, weight12.load([tap * C + c + K, first]), acc1)
            if N2 > 0:
                acc2 = tl.dot(a2, weight22.load([tap * C + c + K, first + N1]), acc2)
    row = start + tl.arange(0, M)
    w, h = row % (width + 2), row // (width + 2) % (height + 2)
    t = row // ((width + 2) * (height + 2))
    inside = ((w < width) & (h < height) & (row < num_rows))[:, None]
    place = out_pointer + ((t * height + h) * width + w)[:, None] * O + first
    tl.store(place + tl.arange(0, N1)[None, :], acc1.to(out_pointer.dtype.element_ty), mask=inside)
    if N2 > 0:
        tl.store(place + N1 + tl.arange(0, N2)[None, :], acc2.to(out_pointer.dtype.element_ty), mask=inside)


def matrix(weight: Tensor) -> Tensor:
    """(O, C, 3, 3, 3) -> (27 C, O)."""
    return weight.permute(2, 3, 4, 1, 0).reshape(-1, weight.shape[0]).contiguous()


def masked(window: Tensor, weight: Tensor, *, m: int = 128, k: int = 32, warps: int = 8, stages: int = 4) -> Tensor:
    """Window (1, C, T + 2, H, W) channels last, weight as `matrix` makes it -> (1, O, T, H, W) channels last."""
    _, num_channels, num_frames, height, width = window.shape
    num_outputs = weight.shape[1]
    n1, n2 = _SPLIT[num_outputs]
    out = _empty(window, num_outputs, num_frames - 2, height, width)
    num_rows = (num_frames - 2) * height * width
    k, k2 = (64, 32) if k == 96 else (k, 0)
    _masked[(triton.cdiv(num_rows, m), num_outputs // (n1 + n2))](
        window, weight, out, num_rows, height, width,
        C=num_channels, O=num_outputs, M=m, K=k, K2=k2, N1=n1, N2=n2, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out


def padded(window: Tensor, weight: Tensor, *, m: int = 128, k: int = 32, warps: int = 8, stages: int = 4) -> Tensor:
    """Window (1, C, T + 2, H + 2, W + 2) channels last with zeros around -> (1, O, T, H, W) channels last."""
    _, num_channels, num_frames, height, width = window.shape
    height, width, num_frames, num_outputs = height - 2, width - 2, num_frames - 2, weight.shape[1]
    n1, n2 = _SPLIT[num_outputs]
    out = _empty(window, num_outputs, num_frames, height, width)
    num_rows = num_frames * (height + 2) * (width + 2)
    rows = window.permute(0, 2, 3, 4, 1).reshape(-1, num_channels)
    k, k2 = (64, 32) if k == 96 else (k, 0)
    _padded[(triton.cdiv(num_rows, m), num_outputs // (n1 + n2))](
        TensorDescriptor.from_tensor(rows, [m, k]),
        TensorDescriptor.from_tensor(rows, [m, k2 or k]),
        TensorDescriptor.from_tensor(weight, [k, n1]),
        TensorDescriptor.from_tensor(weight, [k, n2 or n1]),
        TensorDescriptor.from_tensor(weight, [k2 or k, n1]),
        TensorDescriptor.from_tensor(weight, [k2 or k, n2 or n1]),
        out, num_rows, height, width,
        C=num_channels, O=num_outputs, M=m, K=k, K2=k2, N1=n1, N2=n2, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out


def _empty(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(1, *shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last_3d)
