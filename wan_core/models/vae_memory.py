"""How much memory a decode takes, whole or in tiles, and which tile fits into what is left.

Counted are the tensors that live at the peak, layer by layer as `vae21` and `vae_layers` run them: the past that every
convolution keeps (most of it), the widest layer, what waits before it, and the video so far. On one H200 the count met
`torch.cuda.max_memory_allocated` to 1 MB of 6.9 GB (docs/LOG.md, 2026-11-21); `tests/unit/models/test_vae_memory.py`
holds it against the model itself on the meta device.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..kernels.vae import TORCH, VaeForms
from ..specs import VaeSpec, video_frames
from .vae21 import FRAMES_AT_ONCE, FRAMES_AT_ONCE_BEFORE, Level, decoder_levels
from .vae_tiling import Tile

_RGB = 3
_KERNEL = 27  # 3x3x3


def decode_bytes(
    spec: VaeSpec,
    latent_size: tuple[int, int, int],
    dtype_bytes: int,
    tile: Tile | None = None,
    forms: VaeForms = TORCH.forms,
) -> int:
    """Peak bytes of live tensors, above the weights, while one latent of size (T, H, W) is decoded chunk by chunk.

    With a tile, for `decode_tiled_chunks` and with its buffers. forms: of the kernels that the VAE is built with.
    The chunk before the one under way is counted, since generators hold on to it. Not counted: the latent, workspaces
    of libraries, the allocator's slack, the score matrix where attention is not fused, and what the caller keeps.
    """
    num_latent_frames, height, width = latent_size
    memory = _Memory(spec=spec, single=num_latent_frames == 1, forms=forms)
    inner, outer = memory.inner(), memory.outer()
    if tile is None or tile.covers(height, width):
        return dtype_bytes * (height * width * max(inner, memory.inner_cached() + outer) + memory.made())
    features = _features(spec, latent_size)
    # First the inner part fills the features (a list, then one tensor), then the tiles turn them into the video.
    first = height * width * inner + 2 * features
    then = features + _video(spec, latent_size) + min(tile.height, height) * min(tile.width, width) * outer
    return dtype_bytes * (max(first, then) + memory.made())


def buffer_bytes(spec: VaeSpec, latent_size: tuple[int, int, int], dtype_bytes: int) -> int:
    """What a decode in tiles still holds when the last tile is done and its frames are taken."""
    return dtype_bytes * (_features(spec, latent_size) + _video(spec, latent_size))


def _features(spec: VaeSpec, latent_size: tuple[int, int, int]) -> int:
    return spec.dim * spec.dim_multipliers[-1] * math.prod(latent_size)


def _video(spec: VaeSpec, latent_size: tuple[int, int, int]) -> int:
    num_latent_frames, height, width = latent_size
    in_time, *in_space = spec.stride
    return _RGB * video_frames(num_latent_frames, in_time) * height * width * math.prod(in_space)


def default_tile(
    spec: VaeSpec,
    latent_size: tuple[int, int, int],
    dtype_bytes: int,
    budget_bytes: int,
    *,
    overlap: int = 16,
    forms: VaeForms = TORCH.forms,
) -> Tile | None:
    """`None` if a latent of size (T, H, W) decodes whole within the budget; else the tile that wastes least and fits.

    Where nothing fits, the tile that needs least: compare its `decode_bytes` with the budget.
    """
    if decode_bytes(spec, latent_size, dtype_bytes, None, forms) <= budget_bytes:
        return None
    _, height, width = latent_size
    tiles = {
        Tile(height=tall, width=wide, overlap=overlap): down * tall * across * wide
        for down, tall in _divisions(height, overlap)
        for across, wide in _divisions(width, overlap)
    }
    fitting = [tile for tile in tiles if decode_bytes(spec, latent_size, dtype_bytes, tile, forms) <= budget_bytes]
    if fitting:
        return min(fitting, key=tiles.__getitem__)
    return min(tiles, key=lambda tile: tile.height * tile.width)


def _divisions(size: int, overlap: int) -> list[tuple[int, int]]:
    """Ways to cover `size` by 1, 2, 3, ... tiles of equal length that share `overlap`: (number, length)."""
    ways = ((number, math.ceil((size + (number - 1) * overlap) / number)) for number in range(1, size + 1))
    return [(number, max(length, 2 * overlap)) for number, length in ways if number == 1 or length >= 2 * overlap]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Memory:
    """Elements alive at the peak, per latent position: everything but `made` is proportional to the frame's area.

    single: an image, which needs no caches.
    """

    spec: VaeSpec
    single: bool
    forms: VaeForms

    def inner_cached(self) -> int:
        spec = self.spec
        return 0 if self.single else 2 * (spec.latent_channels + 4 * spec.dim * spec.dim_multipliers[-1])

    def inner(self) -> int:
        """Attention is the widest here: x, its norm, q, k, v, what was attended, and the sum."""
        return 7 * self.spec.dim * self.spec.dim_multipliers[-1] + self.inner_cached()

    def outer(self) -> int:
        """The caches of all convolutions, the widest layer with what waits for it, and the video so far."""
        levels = decoder_levels(self.spec)
        widest = max(self._layer(level, levels) + self._waiting(level, levels) + self._video(level) for level in levels)
        return self._cached(levels) + widest + levels[0].channels + self.spec.latent_channels

    def made(self) -> int:
        """Forms of weights that a run makes for itself, whatever its frames."""
        levels = decoder_levels(self.spec)
        merged = sum(16 * level.channels * (level.channels // 2) for level in levels if level.upsample != "none")
        found = merged if self.forms.merges else 0
        if self.single:
            return found
        for level in levels:
            later = 2 * self.spec.num_res_blocks + 1
            found += self._stacked(level.in_channels, level.channels)
            found += later * self._stacked(level.channels, level.channels)
        return found + self._stacked(levels[-1].channels, _RGB)

    def _stacked(self, in_channels: int, channels: int) -> int:
        return _KERNEL * in_channels * channels if self.forms.stacks(in_channels) else 0

    def _cached(self, levels: Sequence[Level]) -> int:
        if self.single:
            return 0
        cached = self._past(levels[-1].channels) * levels[-1].rows ** 2
        for level in levels:
            rest = (2 * self.spec.num_res_blocks + 1) * self._past(level.channels)
            time_conv = 2 * level.channels if level.upsample == "space-time" else 0
            cached += (self._past(level.in_channels) + rest + time_conv) * level.rows**2
        return cached

    def _past(self, num_channels: int) -> int:
        return (3 if self.forms.stacks(num_channels) else 2) * num_channels

    def _at_once(self, level: Level) -> int:
        """Frames that a level takes together."""
        last = decoder_levels(self.spec)[-1]
        if self.single or level.frames < self.spec.stride[0]:
            return 1 if self.single else level.frames
        if not self.forms.stacks(last.channels):
            return min(FRAMES_AT_ONCE, level.frames)
        return 1 if level == last else min(FRAMES_AT_ONCE_BEFORE, level.frames)

    def _waiting(self, level: Level, levels: Sequence[Level]) -> int:
        """Frames that this level and the one before it have not come to yet."""
        full_rate = [each for each in levels if each.frames == self.spec.stride[0]]
        if self.single or level not in full_rate:
            return 0
        first, at_once = full_rate[0], self._at_once(full_rate[0])
        waiting = first.frames * first.in_channels * first.rows**2 if at_once < first.frames else 0
        if level == levels[-1] and self._at_once(level) < at_once:
            before = levels[-2]
            waiting += at_once * before.channels * before.rows**2
        return waiting

    def _video(self, level: Level) -> int:
        """The chunk before, and what is done of this one while a level takes the last of its frames."""
        in_time, *in_space = self.spec.stride
        frame = _RGB * math.prod(in_space)
        if self.single:
            return frame
        done = in_time - self._at_once(level) if level.frames == in_time else 0
        return (in_time + done) * frame

    def _layer(self, level: Level, levels: Sequence[Level]) -> int:
        """The wider of a residual block (x, window, result) and an upsampling (x, its enlargement, half the channels).

        The last upsampling belongs to the last level, whose frames it takes as that does.
        """
        frames = self._at_once(level)
        past = 0 if self.single or self.forms.stacks(level.channels) else 2
        widest = (3 * frames + past) * level.channels * level.rows**2
        if level == levels[-1]:
            return max(widest, self._upsampling(levels[-2], frames))
        return widest if level == levels[-2] else max(widest, self._upsampling(level, frames))

    def _upsampling(self, level: Level, frames: int) -> int:
        """x, twice the frames of it where there are, their enlargement, and half the channels of that.

        Merged, the enlargement is what four small kernels find at the corners of the pixels: half as much.
        """
        enlarged = (2 if self.forms.merges else 4) + 2
        in_time = level.upsample == "space-time" and not self.single
        return (1 + 2 + 2 * enlarged if in_time else 1 + enlarged) * frames * level.channels * level.rows**2
