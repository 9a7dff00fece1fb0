"""The VAE in overlapping spatial tiles, for frames that do not fit whole; and how much memory a decode takes.

What is tiled: only the convolutions between the video and the latent's resolution, which hold nearly all the memory
(`WanVae.decode_outer`, `encode_outer`). The middle with its attention over the frame is small and runs on whole frames,
so every tile agrees with it. What a tile lacks is then only what lies beyond its border: the convolutions reach 12
latent rows, with little weight beyond a few. So neighbours overlap, the rows of the overlap next to a border are not
used, and the rest is blended. With random weights the default overlap of 16 is off by 5e-5 to 3e-4 of the untiled
decode's norm, and from 33 on nothing but rounding is left. (An attention per tile would be off by 0.2 to 0.5.) Time is
exact: each tile has its own causal cache.

Order: each tile runs through all its frames before the next one starts. Going through all tiles of one frame first
would let finished frames stream out, but needs a feature cache per tile. Over a whole frame that cache is 70 % of what
an untiled decode takes, and tiles that overlap hold more of it, so tiles in that order would save nothing. The price
is that the features and the video wait in buffers (0.23 and 0.45 GB at 1280x720x81 in bfloat16) and the first chunk
comes at the end; `on_progress` reports, and may stop, the work before that.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product

import torch
from torch import Tensor

from ..errors import InputError
from ..kernels.vae import TORCH
from ..specs import VaeSpec, video_frames
from .vae21 import (
    FRAMES_AT_ONCE,
    FRAMES_AT_ONCE_BEFORE,
    Level,
    Stage,
    WanVae,
    decoder_levels,
    run_chunks,
    video_chunks,
)

# Which convolutions run over planes, by their channels (`VaeKernels.stacks`).
Stacks = Callable[[int], bool]
# Called with the chunks done and to do, over all tiles; what it raises ends the work.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """Size of a tile, and the least that two neighbours share, in latent rows and columns (8 pixels each).

    Raises `InputError` for a tile of which its overlaps would leave nothing.
    """

    height: int = 64
    width: int = 64
    overlap: int = 16

    def __post_init__(self) -> None:
        if self.overlap < 1:
            raise InputError(f"tiles overlap by {self.overlap} latent rows, expected at least 1")
        for name, size in (("height", self.height), ("width", self.width)):
            if size < 2 * self.overlap:
                least = f"twice their overlap, at least {2 * self.overlap}"
                raise InputError(f"the {name} of tiles is {size} latent rows, expected {least}")

    def covers(self, height: int, width: int) -> bool:
        """Whether one tile holds a frame of this many latent rows and columns."""
        return self.height >= height and self.width >= width


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One tile along one axis: its samples of the input, those of the output, and the weight of each of the latter."""

    source: slice
    target: slice
    weights: Tensor


def spans(size: int, length: int, overlap: int, *, source: int, target: int) -> list[Span]:
    """The fewest tiles of `length` that cover `size` and share `overlap` latent rows or more, spread evenly.

    `source` and `target` are the input and output samples per latent row. The weights of all tiles sum to one.
    """
    length = min(length, size)
    steps = math.ceil((size - length) / (length - overlap)) if length < size else 0
    starts = [round(step * (size - length) / max(steps, 1)) for step in range(steps + 1)]
    cover = [
        Span(source=_scaled(start, length, source), target=_scaled(start, length, target), weights=weights)
        for start, weights in zip(starts, torch.ones(len(starts), length * target), strict=True)
    ]
    for before, after in pairwise(cover):
        ramp = _ramp(before.target.stop - after.target.start)
        after.weights[: len(ramp)] *= ramp
        before.weights[-len(ramp) :] *= 1 - ramp
    # Two neighbours sum to one as they are; where small tiles lie three deep the division sees to it.
    total = torch.zeros(size * target)
    for span in cover:
        total[span.target] += span.weights
    return [replace(span, weights=span.weights / total[span.target]) for span in cover]


def _scaled(start: int, length: int, scale: int) -> slice:
    return slice(start * scale, (start + length) * scale)


def _ramp(length: int) -> Tensor:
    """Weight of the later tile over what two share: 0 for 3/8 of it, sin^2 over 1/4, 1 for 3/8.

    A tile is least exact at its border. Of the margins tried (none, 1/4, 3/8, a hard cut at 1/2) 3/8 left the least
    error and the smallest steps.
    """
    margin = 3 * length // 8
    rise = torch.arange(length - 2 * margin)
    rise = torch.sin((rise + 0.5) * (math.pi / 2 / len(rise))) ** 2
    return torch.cat([torch.zeros(margin), rise, torch.ones(margin)])


def decode_tiled_chunks(
    vae: WanVae, latent: Tensor, tile: Tile, *, on_progress: Progress | None = None
) -> Iterator[Tensor]:
    """`vae.decode_chunks` in tiles: raw latent (B, 16, T, H, W) to T video chunks (B, 3, t, 8H, 8W) in [-1, 1].

    A frame that one tile covers is decoded by `decode_chunks`, chunk by chunk. Otherwise the chunks come when the last
    tile is done, and are views of one buffer on the VAE's device. Raises `InputError` at the call.
    """
    vae.check_latent(latent)
    return _decode_tiled_chunks(vae, latent, tile, on_progress or _ignore)


@torch.no_grad()
def _decode_tiled_chunks(vae: WanVae, latent: Tensor, tile: Tile, on_progress: Progress) -> Iterator[Tensor]:
    batch, _, num_latent_frames, height, width = latent.shape
    if tile.covers(height, width):
        for done, chunk in enumerate(vae.decode_chunks(latent), start=1):
            on_progress(done, num_latent_frames)
            yield chunk
        return
    stride, scale, _ = vae.spec.stride
    features = torch.cat(list(run_chunks(vae.decode_inner, latent.split(1, dim=2))), dim=2)
    video = features.new_zeros(batch, 3, video_frames(num_latent_frames, stride), height * scale, width * scale)
    patches = _patches((height, width), tile, source=1, target=scale)
    _run_patches(vae.decode_outer, features.split(1, dim=2), patches, video, on_progress)
    yield from video_chunks(video.clamp_(-1, 1), stride)


@torch.no_grad()
def encode_tiled(vae: WanVae, video: Tensor, tile: Tile, *, on_progress: Progress | None = None) -> Tensor:
    """`vae.encode` in tiles: video (B, 3, 4n + 1, 8H, 8W) in [-1, 1] to the raw latent mean (B, 16, n + 1, H, W).

    Raises `InputError` for a video of another size.
    """
    vae.check_video(video)
    stride, scale, _ = vae.spec.stride
    batch, _, _, height, width = video.shape
    chunks, size = video_chunks(video, stride), (height // scale, width // scale)
    channels = vae.spec.dim * vae.spec.dim_multipliers[-1]
    features = vae.conv1.weight.new_zeros(batch, channels, len(chunks), *size)
    _run_patches(
        vae.encode_outer, chunks, _patches(size, tile, source=scale, target=1), features, on_progress or _ignore
    )
    return torch.cat(list(run_chunks(vae.encode_inner, features.split(1, dim=2))), dim=2)


def _ignore(done: int, total: int) -> None:
    """Nobody asked for progress."""


def _patches(size: tuple[int, int], tile: Tile, *, source: int, target: int) -> list[tuple[Span, Span]]:
    rows = spans(size[0], tile.height, tile.overlap, source=source, target=target)
    columns = spans(size[1], tile.width, tile.overlap, source=source, target=target)
    return list(product(rows, columns))


def _run_patches(
    stage: Stage,
    chunks: Sequence[Tensor],
    patches: Sequence[tuple[Span, Span]],
    target: Tensor,
    on_progress: Progress,
) -> None:
    """Run all chunks through `stage` patch by patch, and add each result, weighted, to `target`."""
    done = 0
    for rows, columns in patches:
        weights = torch.outer(rows.weights, columns.weights).to(target.device)
        start = 0
        for coded in run_chunks(stage, [chunk[..., rows.source, columns.source] for chunk in chunks]):
            frames = slice(start, start + coded.shape[2])
            target[:, :, frames, rows.target, columns.target].addcmul_(coded, weights)
            start, done = frames.stop, done + 1
            on_progress(done, len(patches) * len(chunks))


def decode_bytes(
    spec: VaeSpec,
    latent_size: tuple[int, int, int],
    dtype_bytes: int,
    tile: Tile | None = None,
    stacks: Stacks = TORCH.stacks,
) -> int:
    """Peak bytes of live tensors, above the weights, while one latent of size (T, H, W) is decoded chunk by chunk.

    With a tile, for `decode_tiled_chunks` and with its buffers. stacks: the rule of the kernels that the VAE is built
    with. Not counted: workspaces of the convolution library, the allocator's slack, the score matrix where attention is
    not fused, and the chunks that the caller keeps.
    """
    num_latent_frames, height, width = latent_size
    memory = _Memory(spec=spec, single=num_latent_frames == 1, stacks=stacks)
    inner, outer = memory.inner(), memory.outer()
    if tile is None or tile.covers(height, width):
        return dtype_bytes * height * width * max(inner, memory.inner_cached() + outer)
    in_time, *in_space = spec.stride
    features = spec.dim * spec.dim_multipliers[-1] * num_latent_frames
    video = 3 * video_frames(num_latent_frames, in_time) * math.prod(in_space)
    # First the inner part fills the features (a list, then one tensor), then the tiles turn them into the video.
    first = height * width * (inner + 2 * features)
    then = height * width * (features + video) + min(tile.height, height) * min(tile.width, width) * outer
    return dtype_bytes * max(first, then)


def default_tile(
    spec: VaeSpec,
    latent_size: tuple[int, int, int],
    dtype_bytes: int,
    budget_bytes: int,
    *,
    overlap: int = 16,
    stacks: Stacks = TORCH.stacks,
) -> Tile | None:
    """`None` if a latent of size (T, H, W) decodes whole within the budget; else the tile that wastes least and fits.

    Where nothing fits, the tile that needs least: compare its `decode_bytes` with the budget.
    """
    if decode_bytes(spec, latent_size, dtype_bytes, None, stacks) <= budget_bytes:
        return None
    _, height, width = latent_size
    tiles = {
        Tile(height=tall, width=wide, overlap=overlap): down * tall * across * wide
        for down, tall in _divisions(height, overlap)
        for across, wide in _divisions(width, overlap)
    }
    fitting = [tile for tile in tiles if decode_bytes(spec, latent_size, dtype_bytes, tile, stacks) <= budget_bytes]
    if fitting:
        return min(fitting, key=tiles.__getitem__)
    return min(tiles, key=lambda tile: tile.height * tile.width)


def _divisions(size: int, overlap: int) -> list[tuple[int, int]]:
    """Ways to cover `size` by 1, 2, 3, ... tiles of equal length that share `overlap`: (number, length)."""
    ways = ((number, math.ceil((size + (number - 1) * overlap) / number)) for number in range(1, size + 1))
    return [(number, max(length, 2 * overlap)) for number, length in ways if number == 1 or length >= 2 * overlap]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Memory:
    """Elements alive at the peak, per latent position: everything in the decoder is proportional to the frame's area.

    single: an image, which needs no caches.
    """

    spec: VaeSpec
    single: bool
    stacks: Stacks

    def inner_cached(self) -> int:
        spec = self.spec
        return 0 if self.single else 2 * (spec.latent_channels + 4 * spec.dim * spec.dim_multipliers[-1])

    def inner(self) -> int:
        """Attention is the widest here: x, its norm, q, k, v, what was attended, and the sum."""
        return 7 * self.spec.dim * self.spec.dim_multipliers[-1] + self.inner_cached()

    def outer(self) -> int:
        """The caches of all convolutions, the widest layer with what waits for it, and a chunk of video."""
        levels = decoder_levels(self.spec)
        in_time, *in_space = self.spec.stride
        chunk = 2 * 3 * (1 if self.single else in_time) * math.prod(in_space)
        widest = max(self._layer(level, levels) + self._waiting(level, levels) for level in levels)
        return self._cached(levels) + widest + chunk + levels[0].channels + self.spec.latent_channels

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
        return (3 if self.stacks(num_channels) else 2) * num_channels

    def _at_once(self, level: Level) -> int:
        """Frames that a level takes together."""
        last = decoder_levels(self.spec)[-1]
        if self.single or level.frames < self.spec.stride[0]:
            return 1 if self.single else level.frames
        if not self.stacks(last.channels):
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

    def _layer(self, level: Level, levels: Sequence[Level]) -> int:
        """The wider of a residual block (x, window, result) and an upsampling (x, its enlargement, half the channels).

        The last upsampling belongs to the last level, whose frames it takes as that does.
        """
        frames = self._at_once(level)
        past = 0 if self.single or self.stacks(level.channels) else 2
        widest = (3 * frames + past) * level.channels * level.rows**2
        if level == levels[-1]:
            return max(widest, self._upsampling(levels[-2], frames))
        return widest if level == levels[-2] else max(widest, self._upsampling(level, frames))

    def _upsampling(self, level: Level, frames: int) -> int:
        """x, twice the frames of it where there are, their enlargement, and half the channels of that."""
        frames_of_x = 1 + 2 + 2 * (4 + 2) if level.upsample == "space-time" and not self.single else 1 + 4 + 2
        return frames_of_x * frames * level.channels * level.rows**2
