"""The layers of the Wan 2.1 VAE, causal in time: a convolution sees its own frame and the two before it.

A video is coded chunk by chunk, so the last input frames of every convolution are kept between chunks. They are kept
in a `FeatureCache` that one run creates and that dies with it; the modules hold nothing but weights, so a run may be
abandoned between chunks and two runs may interleave.

Layouts: x is (B, C, T, H, W). A window is x with the frames before it in front, (B, C, past + T, H, W), allocated in
one place (`FeatureCache.window`); norm and SiLU write straight into it, so that nothing is concatenated. Parameter
names are the official checkpoint's, which is why submodules have numbers for names. Inference only: the layers write
into buffers and must run without gradients.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class CausalConv3d(nn.Conv3d):
    """A convolution over a window: `num_past` earlier frames, then the new ones; "same" in space, valid in time."""

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int, int], stride: int = 1) -> None:
        padding = (0, kernel[1] // 2, kernel[2] // 2)
        super().__init__(in_channels, out_channels, kernel, stride=(stride, 1, 1), padding=padding)
        self.num_past = kernel[0] - stride

    def forward(self, window: Tensor, cache: "FeatureCache") -> Tensor:
        """Convolve the window and leave its last frames in the cache."""
        # A window shorter than the kernel has only zeros before it: leave out the taps that would meet them.
        absent = max(self.kernel_size[0] - window.shape[2], 0)
        out = _convolve(window, self.weight[:, :, absent:], self)
        cache.keep(self, window)
        return out


def _convolve(window: Tensor, weight: Tensor, conv: CausalConv3d) -> Tensor:
    if window.device.type == "cpu" and window.dtype is torch.float32 and torch.backends.mkldnn.is_available():
        # On a CPU `conv3d` takes oneDNN for batches only; a single video would be five to ten times slower.
        return torch.mkldnn_convolution(window, weight, conv.bias, conv.padding, conv.stride, conv.dilation, 1)
    return F.conv3d(window, weight, conv.bias, conv.stride, conv.padding)


class FeatureCache:
    """The last input frames of every causal convolution during one run over `num_latent_frames`.

    They are most of the memory of a run over a video; a single frame needs none.
    """

    def __init__(self, num_latent_frames: int) -> None:
        self.at_start = True  # the first latent frame stands for one video frame: its time is not resampled
        self._keeps = num_latent_frames > 1
        self._past: dict[CausalConv3d, Tensor] = {}

    def window(self, conv: CausalConv3d, x: Tensor) -> Tensor:
        """A buffer with the past of `conv` in place and room for the frames of x behind it."""
        past = self._past.pop(conv, None)
        batch, channels, frames, height, width = x.shape
        num_past = 0 if past is None and frames == 1 else conv.num_past
        window = x.new_empty(batch, channels, num_past + frames, height, width)
        if past is None:
            window[:, :, :num_past].zero_()
        else:
            window[:, :, :num_past].copy_(past)
        return window

    def keep(self, conv: CausalConv3d, window: Tensor) -> None:
        """Keep the last frames of a window, zeros before them where it is too short. A copy: a view would pin all."""
        if not self._keeps:
            return
        past = window[:, :, -conv.num_past :]
        absent = conv.num_past - past.shape[2]
        self._past[conv] = F.pad(past, (0, 0, 0, 0, absent, 0)) if absent else past.clone()


class RmsNorm(nn.Module):
    """x / max(|x|, 1e-12) * sqrt(C) * gamma, with the length |x| over the channels (dimension 1) in float32."""

    def __init__(self, channels: int, num_axes: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *(1,) * num_axes))

    def forward(self, x: Tensor) -> Tensor:
        return self.into(torch.empty_like(x), x)

    def into(self, out: Tensor, x: Tensor) -> Tensor:
        """Write the norm of x to `out` and return it."""
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
        torch.mul(x, math.sqrt(x.shape[1]) / length.clamp_min_(1e-12), out=out)
        return out.mul_(self.gamma)


def window_of(x: Tensor, conv: CausalConv3d, cache: FeatureCache) -> Tensor:
    """x behind the past of `conv`."""
    window = cache.window(conv, x)
    window[:, :, -x.shape[2] :].copy_(x)
    return window


def activated_window(x: Tensor, norm: RmsNorm, conv: CausalConv3d, cache: FeatureCache) -> Tensor:
    """silu(norm(x)) behind the past of `conv`."""
    window = cache.window(conv, x)
    F.silu(norm.into(window[:, :, -x.shape[2] :], x), inplace=True)
    return window


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1x1 convolution on x where the channels change."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.residual = nn.ModuleDict(
            {
                "0": RmsNorm(in_channels, 3),
                "2": CausalConv3d(in_channels, channels, (3, 3, 3)),
                "3": RmsNorm(channels, 3),
                "6": CausalConv3d(channels, channels, (3, 3, 3)),
            }
        )
        self.shortcut = nn.Conv3d(in_channels, channels, 1) if in_channels != channels else None

    def forward(self, x: Tensor, cache: FeatureCache) -> Tensor:
        norm1, conv1, norm2, conv2 = self.residual.values()
        h = conv1(activated_window(x, norm1, conv1, cache), cache)
        window = activated_window(h, norm2, conv2, cache)
        del h  # one large tensor less while the second convolution runs
        h = conv2(window, cache)
        del window
        return h.add_(x if self.shortcut is None else self.shortcut(x))


class AttentionBlock(nn.Module):
    """x + single-head attention within each frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = RmsNorm(channels, 2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, _, height, width = x.shape
        frames = self.norm(rearrange(x, "B C T H W -> (B T) C H W"))
        # The 1x1 convolutions run as products over tokens: q, k, v then have their channels contiguous without a copy,
        # which is what fused attention kernels ask for.
        qkv = _pointwise(rearrange(frames, "F C H W -> F (H W) C"), self.to_qkv)
        q, k, v = rearrange(qkv, "F L (three D) -> three F 1 L D", three=3)
        out = _pointwise(rearrange(F.scaled_dot_product_attention(q, k, v), "F 1 L D -> F L D"), self.proj)
        return x + rearrange(out, "(B T) (H W) C -> B C T H W", B=batch, H=height, W=width)


def _pointwise(tokens: Tensor, conv: nn.Conv2d) -> Tensor:
    return F.linear(tokens, conv.weight.flatten(1), conv.bias)


class Middle(nn.ModuleList):
    """Residual block, attention, residual block, at the latent's resolution."""

    def __init__(self, channels: int) -> None:
        blocks = ResidualBlock(channels, channels), AttentionBlock(channels), ResidualBlock(channels, channels)
        super().__init__(blocks)

    def forward(self, x: Tensor, cache: FeatureCache) -> Tensor:
        before, attention, after = self
        return after(attention(before(x, cache)), cache)


class Head(nn.ModuleDict):
    """conv(silu(norm(x)))."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__({"0": RmsNorm(in_channels, 3), "2": CausalConv3d(in_channels, channels, (3, 3, 3))})

    def forward(self, x: Tensor, cache: FeatureCache) -> Tensor:
        norm, conv = self.values()
        return conv(activated_window(x, norm, conv, cache), cache)


class Upsample(nn.Module):
    """Twice the rows and columns and half the channels, after twice the frames where `temporal`."""

    def __init__(self, channels: int, *, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels, channels // 2, 3, padding=1)})
        self.time_conv = CausalConv3d(channels, 2 * channels, (3, 1, 1)) if temporal else None

    def forward(self, x: Tensor, cache: FeatureCache) -> Tensor:
        batch = x.shape[0]
        if self.time_conv is None or cache.at_start:
            x = rearrange(x, "B C T H W -> (B T) C H W")
        else:
            # The first latent frame never enters this convolution, so at the second one its past is still empty.
            x = self.time_conv(window_of(x, self.time_conv, cache), cache)
            x = rearrange(x, "B (two C) T H W -> (B T two) C H W", two=2)
        x = F.interpolate(x, scale_factor=2.0, mode="nearest-exact")
        return rearrange(self.resample["1"](x), "(B T) C H W -> B C T H W", B=batch)


class Downsample(nn.Module):
    """Half the rows and columns, then half the frames where `temporal`."""

    def __init__(self, channels: int, *, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels, channels, 3, stride=2)})
        self.time_conv = CausalConv3d(channels, channels, (3, 1, 1), stride=2) if temporal else None

    def forward(self, x: Tensor, cache: FeatureCache) -> Tensor:
        batch = x.shape[0]
        x = F.pad(rearrange(x, "B C T H W -> (B T) C H W"), (0, 1, 0, 1))
        x = rearrange(self.resample["1"](x), "(B T) C H W -> B C T H W", B=batch)
        if self.time_conv is None:
            return x
        if cache.at_start:
            cache.keep(self.time_conv, x)
            return x
        return self.time_conv(window_of(x, self.time_conv, cache), cache)
