"""The layers of the Wan 2.1 VAE, causal in time: a convolution sees its own frame and the two before it.

A video is coded chunk by chunk, so the last input frames of every convolution are kept between chunks. They are kept
in a `FeatureCache` that one run creates and that dies with it; the modules hold nothing but weights, so a run may be
abandoned between chunks and two runs may interleave.

Layouts: x is (B, C, T, H, W). A window is x with the frames before it in front, (B, C, past + T, H, W), allocated in
one place (`FeatureCache.window`); norm and SiLU write straight into it, so that nothing is concatenated. Memory is
channels last throughout: that is how tensor cores read convolutions, a norm then runs along a row, and the frames of a
video are one after the other. Between the convolutions stands the work of `kernels.vae`, bound when a VAE is built;
where it asks for that, a convolution runs frame by frame over planes instead of windows: the last three frames side by
side as channels, (B, 3 C, H, W), in a buffer that stays.
Parameter names are the official checkpoint's, which is why submodules have numbers for names. Inference only: the
layers write into buffers and must run without gradients.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..kernels import vae as plain
from ..kernels.vae import VaeKernels

LAYOUT = torch.channels_last_3d


class CausalConv3d(nn.Conv3d):
    """A convolution over a window: `num_past` earlier frames, then the new ones; "same" in space, valid in time."""

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int, int], stride: int = 1) -> None:
        padding = (0, kernel[1] // 2, kernel[2] // 2)
        super().__init__(in_channels, out_channels, kernel, stride=(stride, 1, 1), padding=padding)
        self.num_past = kernel[0] - stride

    def forward(self, window: Tensor, cache: "FeatureCache") -> Tensor:
        """Convolve the window and leave its last frames in the cache."""
        out = self.without_bias(window, cache)
        return out.add_(plain.channels(self.bias, out))

    def without_bias(self, window: Tensor, cache: "FeatureCache") -> Tensor:
        """The same, with the bias left to what follows: cuDNN adds it in a pass of its own. Also over planes."""
        if window.ndim == 4:
            return F.conv2d(window, cache.once(self, self._stacked), None, padding=self.padding[1:]).unsqueeze(2)
        # A window shorter than the kernel has only zeros before it: leave out the taps that would meet them.
        absent = max(self.kernel_size[0] - window.shape[2], 0)
        out = _convolve(window, self.weight[:, :, absent:], self)
        cache.keep(self, window)
        return out

    def _stacked(self) -> Tensor:
        """The kernel over planes: (O, C, 3, h, w) -> (O, 3 C, h, w)."""
        weight = rearrange(self.weight, "O C t h w -> O (t C) h w")
        return weight.contiguous(memory_format=torch.channels_last)


def _convolve(window: Tensor, weight: Tensor, conv: CausalConv3d) -> Tensor:
    if window.device.type == "cpu" and window.dtype is torch.float32 and torch.backends.mkldnn.is_available():
        # On a CPU `conv3d` takes oneDNN for batches only; a single video would be five to ten times slower.
        return torch.mkldnn_convolution(window, weight, None, conv.padding, conv.stride, conv.dilation, 1)
    return F.conv3d(window, weight, None, conv.stride, conv.padding)


class FeatureCache:
    """The last input frames of every causal convolution during one run over `num_latent_frames`.

    They are most of the memory of a run over a video; a single frame needs none.
    """

    def __init__(self, num_latent_frames: int) -> None:
        self.at_start = True  # the first latent frame stands for one video frame: its time is not resampled
        self.keeps = num_latent_frames > 1
        self._past: dict[CausalConv3d, Tensor] = {}
        self._planes: dict[CausalConv3d, Tensor] = {}
        self._made: dict[nn.Module, Tensor] = {}

    def window(self, conv: CausalConv3d, x: Tensor) -> Tensor:
        """A buffer with the past of `conv` in place and room for the frames of x behind it."""
        past = self._past.pop(conv, None)
        batch, channels, frames, height, width = x.shape
        num_past = 0 if past is None and frames == 1 else conv.num_past
        shape = batch, channels, num_past + frames, height, width
        window = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=LAYOUT)
        if past is None:
            window[:, :, :num_past].zero_()
        else:
            window[:, :, :num_past].copy_(past)
        return window

    def keep(self, conv: CausalConv3d, window: Tensor) -> None:
        """Keep the last frames of a window, zeros before them where it is too short. A copy: a view would pin all."""
        if not self.keeps:
            return
        past = window[:, :, -conv.num_past :]
        absent = conv.num_past - past.shape[2]
        self._past[conv] = F.pad(past, (0, 0, 0, 0, absent, 0)) if absent else past.clone()

    def planes(self, conv: CausalConv3d, x: Tensor) -> Tensor:
        """The last three frames that `conv` has seen, zeros before the first; for frames of the size of x."""
        if conv not in self._planes:
            shape = x.shape[0], conv.kernel_size[0] * x.shape[1], *x.shape[3:]
            planes = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
            self._planes[conv] = planes.zero_()
        return self._planes[conv]

    def once(self, module: nn.Module, make: Callable[[], Tensor]) -> Tensor:
        """A form of a module's weight, made when a run first needs it."""
        if module not in self._made:
            self._made[module] = make()
        return self._made[module]


class RmsNorm(nn.Module):
    """x / max(|x|, 1e-12) * sqrt(C) * gamma, with the length |x| over the channels (dimension 1) in float32."""

    def __init__(self, channels: int, num_axes: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *(1,) * num_axes))

    def forward(self, x: Tensor) -> Tensor:
        return plain.norm(x, self.gamma, torch.empty_like(x))


def window_of(x: Tensor, conv: CausalConv3d, cache: FeatureCache) -> Tensor:
    """x behind the past of `conv`."""
    window = cache.window(conv, x)
    _new_frames(window, x).copy_(x)
    return window


def _new_frames(window: Tensor, x: Tensor) -> Tensor:
    return window[:, :, -x.shape[2] :]


def pointwise(x: Tensor, conv: nn.Conv2d | nn.Conv3d) -> Tensor:
    """A convolution with kernel 1 in every axis, as a matrix product over pixels: (B, C, ...) -> (B, O, ...)."""
    return F.linear(x.movedim(1, -1), conv.weight.flatten(1), conv.bias).movedim(-1, 1)


def activated(
    x: Tensor, bias: Tensor | None, norm: RmsNorm, conv: CausalConv3d, kernels: VaeKernels, cache: FeatureCache
) -> Tensor:
    """What `conv` runs over: silu(norm(x + bias)) behind the frames before it, or beside them."""
    if cache.keeps and kernels.forms.stacks(conv.in_channels):
        planes = cache.planes(conv, x)
        kernels.push(x, bias, norm.gamma, planes)
        return planes
    window = cache.window(conv, x)
    kernels.activate(x, bias, norm.gamma, _new_frames(window, x))
    return window


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1x1 convolution on x where the channels change."""

    def __init__(self, in_channels: int, channels: int, kernels: VaeKernels = plain.TORCH) -> None:
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
        self.kernels = kernels

    def forward(self, x: Tensor, cache: FeatureCache) -> Tensor:
        parts = [self._code(part, cache) for part in x.split(self._frames_at_once(x), dim=2)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def _code(self, x: Tensor, cache: FeatureCache) -> Tensor:
        norm1, conv1, norm2, conv2 = self.residual.values()
        h = conv1.without_bias(activated(x, None, norm1, conv1, self.kernels, cache), cache)
        window = activated(h, conv1.bias, norm2, conv2, self.kernels, cache)
        del h  # one large tensor less while the second convolution runs
        h = conv2.without_bias(window, cache)
        del window
        return self.kernels.add(h, conv2.bias, x if self.shortcut is None else pointwise(x, self.shortcut))

    def _frames_at_once(self, x: Tensor) -> int:
        convs = self.residual["2"], self.residual["6"]
        return 1 if any(self.kernels.forms.stacks(conv.in_channels) for conv in convs) else x.shape[2]


class AttentionBlock(nn.Module):
    """x + single-head attention within each frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = RmsNorm(channels, 2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, _, height, width = x.shape
        qkv = pointwise(self.norm(rearrange(x, "B C T H W -> (B T) C H W")), self.to_qkv)
        q, k, v = rearrange(qkv, "F (three D) H W -> three F 1 (H W) D", three=3)
        # On a GPU this is the memory-efficient kernel, the one fused kernel for heads as wide as this.
        out = F.scaled_dot_product_attention(q, k, v)
        out = rearrange(out, "F 1 (H W) D -> F D H W", H=height, W=width)
        return x + rearrange(pointwise(out, self.proj), "(B T) C H W -> B C T H W", B=batch)


class Middle(nn.ModuleList):
    """Residual block, attention, residual block, at the latent's resolution."""

    def __init__(self, channels: int, kernels: VaeKernels = plain.TORCH) -> None:
        before, after = (ResidualBlock(channels, channels, kernels) for _ in range(2))
        super().__init__((before, AttentionBlock(channels), after))

    def forward(self, x: Tensor, cache: FeatureCache) -> Tensor:
        before, attention, after = self
        return after(attention(before(x, cache)), cache)


class Head(nn.ModuleDict):
    """conv(silu(norm(x)))."""

    def __init__(self, in_channels: int, channels: int, kernels: VaeKernels = plain.TORCH) -> None:
        super().__init__({"0": RmsNorm(in_channels, 3), "2": CausalConv3d(in_channels, channels, (3, 3, 3))})
        self.kernels = kernels

    def forward(self, x: Tensor, cache: FeatureCache) -> Tensor:
        norm, conv = self.values()
        at_once = 1 if self.kernels.forms.stacks(conv.in_channels) else x.shape[2]
        parts = [
            conv(activated(part, None, norm, conv, self.kernels, cache), cache) for part in x.split(at_once, dim=2)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


class Upsample(nn.Module):
    """Twice the rows and columns and half the channels, after twice the frames where `temporal`."""

    def __init__(self, channels: int, *, temporal: bool, kernels: VaeKernels = plain.TORCH) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels, channels // 2, 3, padding=1)})
        self.time_conv = CausalConv3d(channels, 2 * channels, (3, 1, 1)) if temporal else None
        self.kernels = kernels

    def forward(self, x: Tensor, cache: FeatureCache) -> Tensor:
        batch, conv = x.shape[0], self.resample["1"]
        if self.time_conv is None or cache.at_start:
            x = rearrange(x, "B C T H W -> (B T) C H W")
        else:
            # The first latent frame never enters this convolution, so at the second one its past is still empty.
            x = self.time_conv(window_of(x, self.time_conv, cache), cache)
            # Channels last, where frames and pixels come before the channels in memory.
            x = rearrange(x, "B (two C) T H W -> (B T two) H W C", two=2).movedim(-1, 1)
        weight = cache.once(conv, lambda: self.kernels.prepare(conv.weight))
        return rearrange(self.kernels.enlarge(x, weight, conv.bias), "(B T) C H W -> B C T H W", B=batch)


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
