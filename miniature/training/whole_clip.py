"""The Wan 2.1 VAE over whole clips, differentiable: the same weights as `WanVae` and the same numbers, for training.

`WanVae` codes chunk by chunk and writes into buffers, which is right for inference and closed to gradients. Over a
whole clip its cache is nothing but zeros before the first frame, with two exceptions that are exact here as well: the
first frame skips every change of frame rate, and an upsampling in time never sees it at all.

Layout: frames (B T) C H W in channels_last memory between the layers, so that a clip is a view of its frames. A causal
convolution is computed in one of two forms with equal results, because which is faster depends on the library: "volume"
is the 3D convolution, "planes" stacks the frames that a kernel sees as channels of one 2D convolution.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from wan_core.models.vae21 import WanVae
from wan_core.models.vae_layers import (
    AttentionBlock,
    CausalConv3d,
    Downsample,
    Head,
    Middle,
    ResidualBlock,
    RmsNorm,
    Upsample,
)

Form = Literal["planes", "volume"]
Activate = Callable[[Tensor, Tensor], Tensor]


def activate(x: Tensor, gamma: Tensor) -> Tensor:
    """silu(norm(x)) for frames (F, C, H, W); in float32 inside, in the dtype of x outside."""
    wide = x.float()
    inverse = torch.rsqrt(wide.square().sum(dim=1, keepdim=True) + 1e-12) * math.sqrt(x.shape[1])
    return F.silu(wide * inverse * gamma.view(1, -1, 1, 1)).to(x.dtype)


@dataclass(frozen=True, slots=True)
class WholeClip:
    """How to compute a VAE over whole clips of one batch size. `activate` may be a compiled one."""

    vae: WanVae
    form: Form = "planes"
    activate: Activate = activate

    def encode(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Video (B, 3, 4n + 1, 8H, 8W) in [-1, 1] -> raw mean and log variance, each (B, 16, n + 1, H, W)."""
        encoder, batch = self.vae.encoder, video.shape[0]
        x = rearrange(video, "B C T H W -> (B T) C H W").contiguous(memory_format=torch.channels_last)
        x = self._causal(encoder.conv1, x, batch)
        for layer in encoder.downsamples:
            x = self._layer(layer, x, batch)
        x = self._head(encoder.head, self._middle(encoder.middle, x, batch), batch)
        moments = _pointwise(self.vae.conv1, x)
        return rearrange(moments.float(), "(B T) (two C) H W -> two B C T H W", B=batch, two=2).unbind(0)

    def decode(self, latent: Tensor) -> Tensor:
        """Raw latent (B, 16, T, H, W) -> video (B, 3, 4T - 3, 8H, 8W), not clamped."""
        decoder, batch = self.vae.decoder, latent.shape[0]
        x = rearrange(latent, "B C T H W -> (B T) C H W").contiguous(memory_format=torch.channels_last)
        x = self._causal(decoder.conv1, _pointwise(self.vae.conv2, x), batch)
        x = self._middle(decoder.middle, x, batch)
        for layer in decoder.upsamples:
            x = self._layer(layer, x, batch)
        return rearrange(self._head(decoder.head, x, batch).float(), "(B T) C H W -> B C T H W", B=batch)

    def _layer(self, layer: nn.Module, x: Tensor, batch: int) -> Tensor:
        if isinstance(layer, ResidualBlock):
            return self._residual(layer, x, batch)
        return self._upsample(layer, x, batch) if isinstance(layer, Upsample) else self._downsample(layer, x, batch)

    def _causal(self, conv: CausalConv3d, x: Tensor, batch: int, *, stride: int = 1) -> Tensor:
        """Causal convolution of frames (B T) C H W with zeros before the first; `stride` in time."""
        past = conv.kernel_size[0] - stride if stride == 1 else 0
        height, width = conv.padding[1:]
        if self.form == "volume":
            video = F.pad(rearrange(x, "(B T) C H W -> B C T H W", B=batch), (0, 0, 0, 0, past, 0))
            out = F.conv3d(video, conv.weight, conv.bias, (stride, 1, 1), (0, height, width))
            return rearrange(out, "B C T H W -> (B T) C H W")
        frames = F.pad(rearrange(x, "(B T) C H W -> B T C H W", B=batch), (0, 0, 0, 0, 0, 0, past, 0))
        taps = conv.kernel_size[0]
        last = frames.shape[1] - taps + 1
        stack = torch.cat([frames[:, tap : tap + last : stride] for tap in range(taps)], dim=2)
        weight = rearrange(conv.weight, "O C t h w -> O (t C) h w")
        planes = rearrange(stack, "B T C H W -> (B T) C H W")
        return F.conv2d(planes, weight, conv.bias, padding=(height, width))

    def _residual(self, block: ResidualBlock, x: Tensor, batch: int) -> Tensor:
        norm1, conv1, norm2, conv2 = block.residual.values()
        h = self._causal(conv1, self.activate(x, norm1.gamma), batch)
        h = self._causal(conv2, self.activate(h, norm2.gamma), batch)
        return h + (x if block.shortcut is None else _pointwise(block.shortcut, x))

    def _middle(self, middle: Middle, x: Tensor, batch: int) -> Tensor:
        before, attention, after = middle
        return self._residual(after, _attention(attention, self._residual(before, x, batch)), batch)

    def _head(self, head: Head, x: Tensor, batch: int) -> Tensor:
        norm, conv = head.values()
        return self._causal(conv, self.activate(x, norm.gamma), batch)

    def _upsample(self, layer: Upsample, x: Tensor, batch: int) -> Tensor:
        if layer.time_conv is not None:
            clip = rearrange(x, "(B T) C H W -> B T C H W", B=batch)
            first, rest = clip[:, :1], clip[:, 1:]
            if rest.shape[1]:
                doubled = self._causal(layer.time_conv, rearrange(rest, "B T C H W -> (B T) C H W"), batch)
                doubled = rearrange(doubled, "(B T) (two C) H W -> B (T two) C H W", B=batch, two=2)
                clip = torch.cat((first, doubled), dim=1)
            x = rearrange(clip, "B T C H W -> (B T) C H W")
        return _convolve(layer.resample["1"], F.interpolate(x, scale_factor=2.0, mode="nearest-exact"))

    def _downsample(self, layer: Downsample, x: Tensor, batch: int) -> Tensor:
        x = _convolve(layer.resample["1"], F.pad(x, (0, 1, 0, 1)))
        if layer.time_conv is None or x.shape[0] == batch:
            return x
        first = rearrange(x, "(B T) C H W -> B T C H W", B=batch)[:, :1]
        rest = rearrange(self._causal(layer.time_conv, x, batch, stride=2), "(B T) C H W -> B T C H W", B=batch)
        return rearrange(torch.cat((first, rest), dim=1), "B T C H W -> (B T) C H W")


def _attention(block: AttentionBlock, x: Tensor) -> Tensor:
    height = x.shape[2]
    qkv = _pointwise(block.to_qkv, _normed(block.norm, x))
    q, k, v = rearrange(qkv, "F (three D) H W -> three F 1 (H W) D", three=3)
    out = rearrange(F.scaled_dot_product_attention(q, k, v), "F 1 (H W) D -> F D H W", H=height)
    return x + _pointwise(block.proj, out)


def _normed(norm: RmsNorm, x: Tensor) -> Tensor:
    wide = x.float()
    inverse = torch.rsqrt(wide.square().sum(dim=1, keepdim=True) + 1e-12) * math.sqrt(x.shape[1])
    return (wide * inverse * norm.gamma.view(1, -1, 1, 1)).to(x.dtype)


def _convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)


def _pointwise(conv: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """A convolution with kernel 1 in every axis, over frames."""
    return F.conv2d(x, conv.weight.flatten(1)[:, :, None, None], conv.bias)
