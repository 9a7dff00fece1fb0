"""The Wan 2.1 VAE over whole clips, differentiable: the same weights as `WanVae` and the same numbers, for training.

`WanVae` codes chunk by chunk and writes into buffers, which is right for inference and closed to gradients. Over a
whole clip its cache is nothing but zeros before the first frame, with two exceptions that are exact here as well: the
first frame skips every change of frame rate, and an upsampling in time never sees it at all.

Layout: frames (B T) C H W in channels_last memory between the layers, so that a clip B T H W C is a view of them. A
causal convolution is one 2D convolution over planes: the frames that its kernel sees, stacked as channels. The kernels
for 2D are the better ones for channels as few as these, and three times 16 channels fill a tensor core's tile.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from wan_core.models.vae21 import WanVae
from wan_core.models.vae_layers import AttentionBlock, CausalConv3d, Downsample, Head, Middle, ResidualBlock, Upsample

_TAPS = 3
# Keeps the gradient finite where all channels are zero.
_EPS = 1e-12


def normed(x: Tensor, gamma: Tensor) -> Tensor:
    """Frames (F, C, H, W) with each pixel's channels at length sqrt(C), times gamma; computed in float32."""
    wide = x.float()
    inverse = torch.rsqrt(wide.square().sum(dim=1, keepdim=True) + _EPS) * math.sqrt(x.shape[1])
    return (wide * inverse * gamma.view(1, -1, 1, 1)).to(x.dtype)


def planes(x: Tensor, batch: int, past: int, stride: int) -> Tensor:
    """Frames (B T) C H W -> (B T') (3 C) H W: every frame, or every other, with its two predecessors.

    `past` frames of zeros stand before the first.
    """
    clip = F.pad(_clip(x, batch), (0, 0, 0, 0, 0, 0, past, 0))
    last = clip.shape[1] - _TAPS + 1
    return _frames(torch.cat([clip[:, tap : tap + last : stride] for tap in range(_TAPS)], dim=-1))


def activated_planes(x: Tensor, gamma: Tensor, batch: int) -> Tensor:
    """Planes of silu(norm(x)): what every convolution of a residual block sees."""
    return planes(F.silu(normed(x, gamma)), batch, _TAPS - 1, 1)


@dataclass(frozen=True, slots=True)
class WholeClip:
    """A VAE over whole clips. `activated_planes` may be a compiled one: in small steps it is mostly memory traffic."""

    vae: WanVae
    activated_planes: Callable[[Tensor, Tensor, int], Tensor] = activated_planes

    def encode(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Video (B, 3, 4n + 1, 8H, 8W) in [-1, 1] -> raw mean and log variance, each (B, 16, n + 1, H, W)."""
        encoder, batch = self.vae.encoder, video.shape[0]
        x = _causal(encoder.conv1, _to_frames(video), batch)
        for layer in encoder.downsamples:
            x = self._layer(layer, x, batch)
        x = self._head(encoder.head, self._middle(encoder.middle, x, batch), batch)
        moments = _pointwise(self.vae.conv1, x).float()
        mean, log_variance = rearrange(moments, "(B T) (two C) H W -> two B C T H W", B=batch, two=2)
        return mean, log_variance

    def decode(self, latent: Tensor) -> Tensor:
        """Raw latent (B, 16, T, H, W) -> video (B, 3, 4T - 3, 8H, 8W), not clamped."""
        decoder, batch = self.vae.decoder, latent.shape[0]
        x = _causal(decoder.conv1, _pointwise(self.vae.conv2, _to_frames(latent)), batch)
        x = self._middle(decoder.middle, x, batch)
        for layer in decoder.upsamples:
            x = self._layer(layer, x, batch)
        return rearrange(self._head(decoder.head, x, batch).float(), "(B T) C H W -> B C T H W", B=batch)

    def _layer(self, layer: nn.Module, x: Tensor, batch: int) -> Tensor:
        if isinstance(layer, ResidualBlock):
            return self._residual(layer, x, batch)
        return _upsample(layer, x, batch) if isinstance(layer, Upsample) else _downsample(layer, x, batch)

    def _residual(self, block: ResidualBlock, x: Tensor, batch: int) -> Tensor:
        norm1, conv1, norm2, conv2 = block.residual.values()
        h = _over_planes(conv1, self.activated_planes(x, norm1.gamma, batch))
        h = _over_planes(conv2, self.activated_planes(h, norm2.gamma, batch))
        return h + (x if block.shortcut is None else _pointwise(block.shortcut, x))

    def _middle(self, middle: Middle, x: Tensor, batch: int) -> Tensor:
        before, attention, after = middle
        return self._residual(after, _attention(attention, self._residual(before, x, batch)), batch)

    def _head(self, head: Head, x: Tensor, batch: int) -> Tensor:
        norm, conv = head.values()
        return _over_planes(conv, self.activated_planes(x, norm.gamma, batch))


def _upsample(layer: Upsample, x: Tensor, batch: int) -> Tensor:
    if layer.time_conv is not None and x.shape[0] > batch:
        first, rest = _clip(x, batch).tensor_split((1,), dim=1)
        doubled = _causal(layer.time_conv, _frames(rest), batch)
        doubled = rearrange(doubled, "(B T) (two C) H W -> B (T two) H W C", B=batch, two=2)
        x = _frames(torch.cat((first, doubled), dim=1))
    return _convolve(layer.resample["1"], F.interpolate(x, scale_factor=2.0, mode="nearest-exact"))


def _downsample(layer: Downsample, x: Tensor, batch: int) -> Tensor:
    x = _convolve(layer.resample["1"], F.pad(x, (0, 1, 0, 1)))
    if layer.time_conv is None or x.shape[0] == batch:
        return x
    halved = _over_planes(layer.time_conv, planes(x, batch, 0, 2))
    return _frames(torch.cat((_clip(x, batch)[:, :1], _clip(halved, batch)), dim=1))


def _causal(conv: CausalConv3d, x: Tensor, batch: int) -> Tensor:
    return _over_planes(conv, planes(x, batch, _TAPS - 1, 1))


def _over_planes(conv: CausalConv3d, stacked: Tensor) -> Tensor:
    weight = rearrange(conv.weight, "O C t h w -> O (t C) h w")
    return F.conv2d(stacked, weight, conv.bias, padding=conv.padding[1:])


def _attention(block: AttentionBlock, x: Tensor) -> Tensor:
    height = x.shape[2]
    qkv = _pointwise(block.to_qkv, normed(x, block.norm.gamma))
    q, k, v = rearrange(qkv, "F (three D) H W -> three F 1 (H W) D", three=3)
    out = rearrange(F.scaled_dot_product_attention(q, k, v), "F 1 (H W) D -> F D H W", H=height)
    return x + _pointwise(block.proj, out)


def _convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)


def _pointwise(conv: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """A convolution with kernel 1 in every axis, over frames."""
    return F.conv2d(x, conv.weight.flatten(1)[:, :, None, None], conv.bias)


def _to_frames(clip: Tensor) -> Tensor:
    return rearrange(clip, "B C T H W -> (B T) C H W").contiguous(memory_format=torch.channels_last)


def _clip(x: Tensor, batch: int) -> Tensor:
    return rearrange(x, "(B T) C H W -> B T H W C", B=batch)


def _frames(clip: Tensor) -> Tensor:
    return rearrange(clip, "B T H W C -> (B T) C H W")
