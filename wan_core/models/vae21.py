"""The Wan 2.1 VAE: video (B, 3, 4n + 1, 8H, 8W) in [-1, 1] to and from a latent (B, 16, n + 1, H, W) in raw VAE space.

Coded chunk by chunk, one video frame and then four at a time, exactly as if the whole video were coded at once: the
layers are causal and a `FeatureCache` carries what they need from chunk to chunk. Decoding is a generator, so a caller
can take frames away, show them or stop between chunks; nothing but the weights outlives it.

Works in the dtype and on the device of the weights; inputs are taken there chunk by chunk, so a long video may wait on
the host. Parameter names are the official checkpoint's (194 tensors at any width).

Not here: the normalisation of latents for the transformer (`LATENT_MEAN`, `LATENT_STD`), sampling from the posterior
(encoding returns its mean), tiles (`vae_tiling`), training.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..kernels.vae import TORCH, VaeKernels
from ..specs import VaeSpec, video_frames
from .vae_layers import (
    CausalConv3d,
    Downsample,
    FeatureCache,
    Head,
    Middle,
    ResidualBlock,
    Upsample,
    window_of,
)

# Layers that see every video frame hold the largest tensors and take this many frames at a time: the same numbers,
# because they are causal, in less memory (a decode at 1280x720 in bfloat16: 6.2 GB instead of 7.2). Even, because the
# encoder's first change of frame rate makes one frame of two.
FRAMES_AT_ONCE = 2
# Where the last level runs frame by frame (over planes), the one before it has the room to take more.
FRAMES_AT_ONCE_BEFORE = 4

_VIDEO_CHANNELS = 3
_WAN22_LATENT_CHANNELS = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One resolution of the decoder: its residual blocks, and the upsampling that follows them.

    rows: rows per latent row. frames: video frames per latent frame at this level (after the first latent frame).
    """

    in_channels: int
    channels: int
    rows: int
    frames: int
    upsample: Literal["none", "space", "space-time"]


def decoder_levels(spec: VaeSpec) -> tuple[Level, ...]:
    """The decoder's levels, from the latent's resolution to the video's."""
    last = len(spec.dim_multipliers) - 1
    assert len(spec.temporal_downsample) == last
    assert spec.stride == (2 ** sum(spec.temporal_downsample), 2**last, 2**last)
    levels: list[Level] = []
    before, frames = spec.dim * spec.dim_multipliers[-1], 1
    for index, (multiplier, temporal) in enumerate(
        zip(reversed(spec.dim_multipliers), (*reversed(spec.temporal_downsample), False), strict=True)
    ):
        channels = spec.dim * multiplier
        upsample = "none" if index == last else "space-time" if temporal else "space"
        levels.append(Level(in_channels=before, channels=channels, rows=2**index, frames=frames, upsample=upsample))
        before, frames = channels // 2, frames * (2 if temporal else 1)
    return tuple(levels)


Stage = Callable[[Tensor, FeatureCache], Tensor]


@torch.no_grad()
def run_chunks(stage: Stage, chunks: Sequence[Tensor]) -> Iterator[Tensor]:
    """Pass the chunks of one video, or of its latent, through `stage` in order, with a feature cache of their own."""
    cache = FeatureCache(len(chunks))
    for chunk in chunks:
        yield stage(chunk, cache)
        cache.at_start = False


def video_chunks(video: Tensor, stride: int) -> list[Tensor]:
    """Views of the first frame, and then of `stride` frames each."""
    return [video[:, :, :1], *(video[:, :, i : i + stride] for i in range(1, video.shape[2], stride))]


class Encoder(nn.Module):
    """The first video frame, or the next `stride` of them, to one latent frame of means and log variances.

    `outer` takes video to features at the latent's resolution, by convolutions alone; `inner` has the attention.
    """

    def __init__(self, spec: VaeSpec, kernels: VaeKernels = TORCH) -> None:
        super().__init__()
        self.conv1 = CausalConv3d(_VIDEO_CHANNELS, spec.dim, (3, 3, 3))
        layers: list[nn.Module] = []
        before = spec.dim
        for multiplier, temporal in zip(spec.dim_multipliers, (*spec.temporal_downsample, None), strict=True):
            channels = spec.dim * multiplier
            layers.append(ResidualBlock(before, channels, kernels))
            layers += [ResidualBlock(channels, channels, kernels) for _ in range(spec.num_res_blocks - 1)]
            if temporal is not None:
                layers.append(Downsample(channels, temporal=temporal))
            before = channels
        self.downsamples = nn.ModuleList(layers)
        self.middle = Middle(before, kernels)
        self.head = Head(before, 2 * spec.latent_channels, kernels)
        self._num_full_rate = 1 + min(_resamples_time(layers), default=len(layers) - 1)

    def outer(self, video: Tensor, cache: FeatureCache) -> Tensor:
        layers = list(self.downsamples)
        parts = []
        for part in video.split(FRAMES_AT_ONCE, dim=2):
            x = self.conv1(window_of(part, self.conv1, cache), cache)
            parts.append(_run(layers[: self._num_full_rate], x, cache))
        return _run(layers[self._num_full_rate :], torch.cat(parts, dim=2), cache)

    def inner(self, features: Tensor, cache: FeatureCache) -> Tensor:
        return self.head(self.middle(features, cache), cache)


class Decoder(nn.Module):
    """One latent frame to the first video frame, or to the next `stride` of them.

    `inner` takes the latent to features at its own resolution and has the attention; `outer` takes features to video,
    by convolutions alone.
    """

    def __init__(self, spec: VaeSpec, kernels: VaeKernels = TORCH) -> None:
        super().__init__()
        levels = decoder_levels(spec)
        self.conv1 = CausalConv3d(spec.latent_channels, levels[0].channels, (3, 3, 3))
        self.middle = Middle(levels[0].channels, kernels)
        layers: list[nn.Module] = []
        for level in levels:
            layers.append(ResidualBlock(level.in_channels, level.channels, kernels))
            layers += [ResidualBlock(level.channels, level.channels, kernels) for _ in range(spec.num_res_blocks)]
            if level.upsample != "none":
                layers.append(Upsample(level.channels, temporal=level.upsample == "space-time", kernels=kernels))
        self.upsamples = nn.ModuleList(layers)
        self.head = Head(levels[-1].channels, _VIDEO_CHANNELS, kernels)
        self.kernels = kernels
        self._num_low_rate = 1 + max(_resamples_time(layers), default=-1)
        # The last level with the upsampling before it, as far as it sees every frame.
        self._num_before_last = max(len(layers) - spec.num_res_blocks - 2, self._num_low_rate)
        self._last_channels = levels[-1].channels

    def inner(self, latent: Tensor, cache: FeatureCache) -> Tensor:
        return self.middle(self.conv1(window_of(latent, self.conv1, cache), cache), cache)

    def outer(self, features: Tensor, cache: FeatureCache) -> Tensor:
        layers = list(self.upsamples)
        low, split = self._num_low_rate, self._num_before_last
        at_once, at_once_last = FRAMES_AT_ONCE, FRAMES_AT_ONCE
        if self.kernels.forms.stacks(self._last_channels):
            at_once, at_once_last = FRAMES_AT_ONCE_BEFORE, 1
        parts, waiting = [], list(_run(layers[:low], features, cache).split(at_once, dim=2))
        # Taken out one by one, so that the first layer to run over some is the last to hold them.
        while waiting:
            frames = list(_run(layers[low:split], waiting.pop(0), cache).split(at_once_last, dim=2))
            while frames:
                parts.append(self.head(_run(layers[split:], frames.pop(0), cache), cache))
        return torch.cat(parts, dim=2)


def _resamples_time(layers: Sequence[nn.Module]) -> list[int]:
    return [index for index, layer in enumerate(layers) if getattr(layer, "time_conv", None) is not None]


def _run(layers: Sequence[nn.Module], x: Tensor, cache: FeatureCache) -> Tensor:
    for layer in layers:
        x = layer(x, cache)
    return x


class WanVae(nn.Module):
    """Encoder and decoder with the 1x1x1 convolutions on either side of the latent.

    The four stages, of which two make a decode and two an encode, are public for `vae_tiling`; they take one chunk and
    the cache of their run. `encoder.downsamples` and `decoder.upsamples` are called one by one, so hooks on them see a
    run progress.
    """

    def __init__(self, spec: VaeSpec, kernels: VaeKernels = TORCH) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = Encoder(spec, kernels)
        self.conv1 = nn.Conv3d(2 * spec.latent_channels, 2 * spec.latent_channels, 1)
        self.conv2 = nn.Conv3d(spec.latent_channels, spec.latent_channels, 1)
        self.decoder = Decoder(spec, kernels)

    def decode_chunks(self, latent: Tensor) -> Iterator[Tensor]:
        """Raw latent (B, 16, T, H, W) to T video chunks (B, 3, t, 8H, 8W) in [-1, 1], of 1 frame and then 4 each.

        Raises `InputError`, at the call and not at the first chunk, for a latent that is not this VAE's.
        """
        self.check_latent(latent)
        return run_chunks(self._decode_frame, latent.split(1, dim=2))

    def decode(self, latent: Tensor) -> Tensor:
        """Raw latent (B, 16, T, H, W) to video (B, 3, 4T - 3, 8H, 8W) in [-1, 1]."""
        return torch.cat(list(self.decode_chunks(latent)), dim=2)

    def encode_chunks(self, video: Tensor) -> Iterator[Tensor]:
        """Video (B, 3, 4n + 1, 8H, 8W) in [-1, 1] to n + 1 raw latent means (B, 16, 1, H, W).

        Raises `InputError`, at the call and not at the first chunk, for a video of another size.
        """
        self.check_video(video)
        return run_chunks(self._encode_chunk, video_chunks(video, self.spec.stride[0]))

    def encode(self, video: Tensor) -> Tensor:
        """Video (B, 3, 4n + 1, 8H, 8W) in [-1, 1] to the raw latent mean (B, 16, n + 1, H, W)."""
        return torch.cat(list(self.encode_chunks(video)), dim=2)

    def decode_inner(self, frame: Tensor, cache: FeatureCache) -> Tensor:
        """Latent frame (B, 16, 1, H, W) to features (B, C, 1, H, W)."""
        return self.decoder.inner(self.conv2(frame.to(self.conv2.weight)), cache)

    def decode_outer(self, features: Tensor, cache: FeatureCache) -> Tensor:
        """Features (B, C, 1, H, W) to video (B, 3, t, 8H, 8W), not clamped."""
        return self.decoder.outer(features, cache)

    def encode_outer(self, chunk: Tensor, cache: FeatureCache) -> Tensor:
        """Video (B, 3, t, 8H, 8W) to features (B, C, 1, H, W)."""
        return self.encoder.outer(chunk.to(self.conv1.weight), cache)

    def encode_inner(self, features: Tensor, cache: FeatureCache) -> Tensor:
        """Features (B, C, 1, H, W) to the latent mean (B, 16, 1, H, W)."""
        return self.conv1(self.encoder.inner(features, cache))[:, : self.spec.latent_channels]

    def _decode_frame(self, frame: Tensor, cache: FeatureCache) -> Tensor:
        return self.decode_outer(self.decode_inner(frame, cache), cache).clamp_(-1, 1)

    def _encode_chunk(self, chunk: Tensor, cache: FeatureCache) -> Tensor:
        return self.encode_inner(self.encode_outer(chunk, cache), cache)

    def check_latent(self, latent: Tensor) -> None:
        """Raise `InputError` unless the latent is (B, 16, T, H, W) and not empty."""
        expected = self.spec.latent_channels
        if latent.ndim != 5 or 0 in latent.shape:
            raise InputError(f"the latent has shape {tuple(latent.shape)}, expected (batch, {expected}, T, H, W)")
        if (channels := latent.shape[1]) != expected:
            origin = ", those of a Wan 2.2 VAE (TI2V-5B)" if channels == _WAN22_LATENT_CHANNELS else ""
            raise InputError(f"the latent has {channels} channels{origin}: this Wan 2.1 VAE expects {expected}")

    def check_video(self, video: Tensor) -> None:
        """Raise `InputError` unless the video is (B, 3, 4n + 1, 8H, 8W) and not empty."""
        if video.ndim != 5 or video.shape[1] != _VIDEO_CHANNELS or 0 in video.shape:
            raise InputError(f"the video has shape {tuple(video.shape)}, expected (batch, 3, frames, height, width)")
        in_time, *in_space = self.spec.stride
        frames = video.shape[2]
        if frames % in_time != 1 % in_time:
            nearest = video_frames(1 + round((frames - 1) / in_time), in_time)
            raise InputError(f"the video has {frames} frames, expected {in_time}n + 1: the nearest is {nearest}")
        for name, size, stride in zip(("height", "width"), video.shape[3:], in_space, strict=True):
            if size % stride:
                nearest = max(round(size / stride), 1) * stride
                raise InputError(f"the video's {name} is {size}, expected a multiple of {stride}: {nearest} is nearest")
