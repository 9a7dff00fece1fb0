"""The work of the VAE between its convolutions, as functions that a build can bind otherwise.

At 1280x720 the widest features are 177 MB a frame in bfloat16, so whatever passes over them once more than it must is
felt: written out in single operators, a norm with its SiLU takes seven passes, a bias two, a residual sum three.
`TORCH` is the definition, in plain PyTorch; `triton_vae.TRITON` computes the same, each in one kernel, in float32
inside and with one rounding at the end.

Layout: x is (B, C, T, H, W) and frames are (F, C, H, W), in any memory format for `TORCH`, channels last for `TRITON`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeForms:
    """What becomes of the convolutions, which is all that a prediction of memory asks.

    stacks(channels): whether convolutions of so many channels run over planes, in two dimensions.
    merges: whether an upsampling is one with the convolution behind it, and its doubled pixels never exist.
    """

    stacks: Callable[[int], bool]
    merges: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeKernels:
    """What a VAE is built with; `name` is for reports.

    activate(x, bias, gamma, out): silu(norm(x + bias) * gamma) to `out`, a view of a window; uses x up where there is a
    bias, which is the one that the convolution before has left to do.
    push(x, bias, gamma, planes): the same of one frame x (B, C, 1, H, W), as the last of three frames that stand side
    by side as channels, (B, 3 C, H, W); the first of them goes.
    forms: which convolutions run over such planes, and whether `enlarge` doubles pixels.
    add(h, bias, x): h + bias + x in the memory of h.
    prepare(weight): a 3x3 kernel (O, C, 3, 3) in the form in which `enlarge` wants it; once per run.
    enlarge(frames, weight, bias): a 3x3 convolution over twice the rows and columns, (F, C, H, W) -> (F, O, 2H, 2W).
    """

    name: str
    activate: Callable[[Tensor, Tensor | None, Tensor, Tensor], None]
    push: Callable[[Tensor, Tensor | None, Tensor, Tensor], None]
    forms: VaeForms
    add: Callable[[Tensor, Tensor, Tensor], Tensor]
    prepare: Callable[[Tensor], Tensor]
    enlarge: Callable[[Tensor, Tensor, Tensor], Tensor]


def norm(x: Tensor, gamma: Tensor, out: Tensor) -> Tensor:
    """x / max(|x|, 1e-12) * sqrt(C) * gamma, with the length |x| over the channels (dimension 1) in float32."""
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    torch.mul(x, math.sqrt(x.shape[1]) / length.clamp_min_(1e-12), out=out)
    return out.mul_(gamma)


def activate(x: Tensor, bias: Tensor | None, gamma: Tensor, out: Tensor) -> None:
    """silu(norm(x + bias) * gamma) to `out`."""
    F.silu(norm(x if bias is None else x.add_(channels(bias, x)), gamma, out), inplace=True)


def push(x: Tensor, bias: Tensor | None, gamma: Tensor, planes: Tensor) -> None:
    """silu(norm(x + bias) * gamma) as the last of three frames side by side."""
    num_channels = x.shape[1]
    planes[:, : 2 * num_channels] = planes[:, num_channels:].clone()
    activate(x, bias, gamma, planes[:, 2 * num_channels :].unsqueeze(2))


def never(num_channels: int) -> bool:
    """Convolutions in three dimensions, whatever their channels."""
    return False


def beside_tiles(num_channels: int) -> bool:
    """Channels that do not fill the tiles of cuDNN's kernels in three dimensions, which are 64 wide.

    Three frames of them side by side do better. With 96 channels at 1280x720 on one H200: 546 TFLOP/s over planes, 291
    in three dimensions; with 192 channels 591 and 658 (2026-11-21).
    """
    return num_channels % 64 != 0


# By the name of kernels, for plans, which load none.
FORMS = MappingProxyType(
    {"off": VaeForms(stacks=never, merges=False), "triton": VaeForms(stacks=beside_tiles, merges=True)}
)


def add(h: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """h + bias + x in the memory of h."""
    return h.add_(channels(bias, h)).add_(x)


def channels(vector: Tensor, x: Tensor) -> Tensor:
    """A vector over the channels, shaped to meet x (B, C, ...)."""
    return vector.view(-1, *(1,) * (x.ndim - 2))


def as_it_is(weight: Tensor) -> Tensor:
    return weight


def enlarge(frames: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 3x3 convolution over frames with every pixel doubled, row and column."""
    return F.conv2d(F.interpolate(frames, scale_factor=2.0, mode="nearest-exact"), weight, bias, padding=1)


def merged_weight(weight: Tensor) -> Tensor:
    """A 3x3 kernel over doubled pixels as four 2x2 kernels over the pixels themselves: (O, C, 3, 3) -> (4 O, C, 2, 2).

    Of three rows of doubled pixels two are the same: an even row of the output sees the pixel above it by the first
    tap and its own by the sum of the others, an odd row its own by the sum of the first two and the one below by the
    last. Output channels are (row, column, O); the sums are made in float32.
    """
    taps = weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], dtype=torch.float32)
    merged = torch.einsum("pak,qbl,ockl->pqocab", taps, taps, weight.float())
    return merged.flatten(0, 2).to(weight.dtype).contiguous(memory_format=torch.channels_last)


def interleave(corners: Tensor, bias: Tensor) -> Tensor:
    """What the merged kernels find at the corners of all pixels, in its place and with the bias.

    (F, 4 O, H + 1, W + 1) -> (F, O, 2H, 2W)
    """
    num_frames, _, height, width = corners.shape
    by_phase = rearrange(corners, "F (p q O) H W -> F p q O H W", p=2, q=2)
    out = corners.new_empty(num_frames, by_phase.shape[3], 2 * height - 2, 2 * width - 2)
    out = out.to(memory_format=torch.channels_last)
    for p in (0, 1):
        for q in (0, 1):
            found = by_phase[:, p, q, :, p : height - 1 + p, q : width - 1 + q]
            torch.add(found, channels(bias, out), out=out[:, :, p::2, q::2])
    return out


def enlarge_merged(frames: Tensor, merged: Tensor, bias: Tensor) -> Tensor:
    """`enlarge` in 4/9 of its operations and without the doubled pixels; only the sums of weights round anew."""
    return interleave(F.conv2d(frames, merged, padding=1), bias)


TORCH = VaeKernels(
    name="torch", activate=activate, push=push, forms=FORMS["off"], add=add, prepare=as_it_is, enlarge=enlarge
)
