"""The VAE in overlapping spatial tiles, for frames that do not fit whole; and how much memory a decode takes.

Order: each tile runs through all its frames before the next one starts. Going through all tiles of one frame first
would let finished frames stream out, but needs a feature cache per tile. Over a whole frame that cache is 70 % of what
an untiled decode takes, and tiles that overlap hold more of it, so tiles in that order would save nothing. The price
is that the decoded video waits in one buffer (0.45 GB at 1280x720x81 in bfloat16) and the first chunk comes at the
end; `on_progress` reports, and may stop, the work before that.

Time is exact: the frames of a tile run through a causal cache of their own. Space is not: a tile does not see past its
border (the convolutions reach 17 latent rows, with little weight beyond a few), and the attention of the middle block
spans its tile instead of the frame. So tiles overlap and are blended over the overlap by smooth ramps that sum to one.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise, product

import torch
from torch import Tensor

from ..errors import InputError
from ..specs import VaeSpec, latent_frames, video_frames
from .vae21 import FRAMES_AT_ONCE, Level, WanVae, decoder_levels

# Called with the latent frames done and to do, over all tiles; what it raises ends the work.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """Size of a tile, and the least that two neighbours share, in latent rows and columns (8 pixels each).

    Raises `InputError` for a tile without room for a ramp on both sides.
    """

    height: int = 48
    width: int = 48
    overlap: int = 8

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

    `source` and `target` are the input and output samples per latent row. At every output sample the weights of all
    tiles sum to one; they change over all that two neighbours share, because a tile is least exact at its border.
    """
    length = min(length, size)
    steps = math.ceil((size - length) / (length - overlap)) if length < size else 0
    starts = [round(step * (size - length) / max(steps, 1)) for step in range(steps + 1)]
    cover = [
        Span(source=_scaled(start, length, source), target=_scaled(start, length, target), weights=ones)
        for start, ones in zip(starts, torch.ones(len(starts), length * target), strict=True)
    ]
    for before, after in pairwise(cover):
        ramp = _ramp(before.target.stop - after.target.start)
        after.weights[: len(ramp)] *= ramp
        before.weights[-len(ramp) :] *= ramp.flip(0)
    # Two neighbours' ramps sum to one already; where small tiles lie three deep only the division sees to it.
    total = torch.zeros(size * target)
    for span in cover:
        total[span.target] += span.weights
    return [replace(span, weights=span.weights / total[span.target]) for span in cover]


def _ramp(length: int) -> Tensor:
    """From 0 to 1 as sin^2: flat at both ends, so that a tile sets in without a kink, and 1 minus it is its mirror."""
    return torch.sin((torch.arange(length) + 0.5) * (math.pi / 2 / length)) ** 2


def _scaled(start: int, length: int, scale: int) -> slice:
    return slice(start * scale, (start + length) * scale)


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
    num_frames = video_frames(num_latent_frames, stride)
    video = vae.conv2.weight.new_zeros(batch, 3, num_frames, height * scale, width * scale)
    patches = _patches((height, width), tile, source=1, target=scale)
    for done, _ in enumerate(_blend(vae.decode_chunks, latent, video, patches), start=1):
        on_progress(done, len(patches) * num_latent_frames)
    video.clamp_(-1, 1)
    for start in range(1 - stride, num_frames, stride):
        yield video[:, :, max(start, 0) : start + stride]


@torch.no_grad()
def encode_tiled(vae: WanVae, video: Tensor, tile: Tile, *, on_progress: Progress | None = None) -> Tensor:
    """`vae.encode` in tiles: video (B, 3, 4n + 1, 8H, 8W) in [-1, 1] to the raw latent mean (B, 16, n + 1, H, W)."""
    vae.check_video(video)
    report = on_progress or _ignore
    stride, scale, _ = vae.spec.stride
    batch, _, num_frames, height, width = video.shape
    size = latent_frames(num_frames, stride), height // scale, width // scale
    # Summed in float32 whatever the weights' dtype: a latent is small.
    latent = torch.zeros(batch, vae.spec.latent_channels, *size, device=vae.conv1.weight.device)
    patches = _patches(size[1:], tile, source=scale, target=1)
    for done, _ in enumerate(_blend(vae.encode_chunks, video, latent, patches), start=1):
        report(done, len(patches) * size[0])
    return latent.to(vae.conv1.weight.dtype)


def _ignore(done: int, total: int) -> None:
    """Nobody asked for progress."""


def _patches(size: tuple[int, int], tile: Tile, *, source: int, target: int) -> list[tuple[Span, Span]]:
    rows = spans(size[0], tile.height, tile.overlap, source=source, target=target)
    columns = spans(size[1], tile.width, tile.overlap, source=source, target=target)
    return list(product(rows, columns))


def _blend(
    code: Callable[[Tensor], Iterator[Tensor]], source: Tensor, target: Tensor, patches: list[tuple[Span, Span]]
) -> Iterator[None]:
    """Add each coded patch of `source`, weighted, to `target`; yields after every chunk of every patch."""
    for rows, columns in patches:
        weights = torch.outer(rows.weights, columns.weights).to(target.device)
        start = 0
        for chunk in code(source[..., rows.source, columns.source]):
            frames = slice(start, start + chunk.shape[2])
            target[:, :, frames, rows.target, columns.target].addcmul_(chunk, weights)
            start = frames.stop
            yield


def decode_bytes(spec: VaeSpec, latent_size: tuple[int, int, int], dtype_bytes: int, tile: Tile | None = None) -> int:
    """Peak bytes of live tensors, above the weights, while one latent of size (T, H, W) is decoded chunk by chunk.

    With a tile, for `decode_tiled_chunks`, whose video buffer is counted. Not counted: workspaces of the convolution
    library, the allocator's slack, a score matrix where attention is not fused, and chunks that the caller keeps.
    """
    num_latent_frames, height, width = latent_size
    positions, video = height * width, 0
    if tile is not None and not tile.covers(height, width):
        positions = min(tile.height, height) * min(tile.width, width)
        in_time, *in_space = spec.stride
        video = 3 * video_frames(num_latent_frames, in_time) * height * width * math.prod(in_space)
    return dtype_bytes * (positions * _elements_per_position(spec, single=num_latent_frames == 1) + video)


def _elements_per_position(spec: VaeSpec, *, single: bool) -> int:
    """Elements alive at the peak of a decode per latent position: everything in the decoder is proportional to it."""
    levels = decoder_levels(spec)
    full_rate = next(level for level in levels if level.frames == spec.stride[0])
    waiting = (1 if single else full_rate.frames) * full_rate.in_channels * full_rate.rows**2
    chunk = 2 * 3 * math.prod(spec.stride)
    working = waiting + chunk + max(_working_elements(level, spec, single=single) for level in levels)
    if single:
        return working
    cached = spec.latent_channels + 4 * levels[0].channels + levels[-1].channels * levels[-1].rows ** 2
    for level in levels:
        num_wide = 2 * spec.num_res_blocks + 1 + (level.upsample == "space-time")
        cached += (level.in_channels + num_wide * level.channels) * level.rows**2
    return 2 * cached + working


def _working_elements(level: Level, spec: VaeSpec, *, single: bool) -> int:
    """The wider of a residual block (x, window, result) and an upsampling (x, its enlargement, half the channels)."""
    frames = FRAMES_AT_ONCE if level.frames == spec.stride[0] else level.frames
    frames, past = (1, 0) if single else (frames, 2)
    block = 3 * frames + past
    doubled = 2 if level.upsample == "space-time" and not single else 1
    upsampling = 0 if level.upsample == "none" else (1 + doubled * (4 + 2)) * frames
    return max(block, upsampling) * level.channels * level.rows**2


def default_tile(
    spec: VaeSpec, latent_size: tuple[int, int, int], dtype_bytes: int, budget_bytes: int, *, overlap: int = 8
) -> Tile | None:
    """`None` if a latent of size (T, H, W) decodes whole within the budget; else the tile that wastes least and fits.

    Where nothing fits, the tile that needs least: compare its `decode_bytes` with the budget.
    """
    if decode_bytes(spec, latent_size, dtype_bytes) <= budget_bytes:
        return None
    _, height, width = latent_size
    tiles = {
        Tile(height=tall, width=wide, overlap=overlap): down * tall * across * wide
        for down, tall in _divisions(height, overlap)
        for across, wide in _divisions(width, overlap)
    }
    fitting = [tile for tile in tiles if decode_bytes(spec, latent_size, dtype_bytes, tile) <= budget_bytes]
    if fitting:
        return min(fitting, key=tiles.__getitem__)
    return min(tiles, key=lambda tile: tile.height * tile.width)


def _divisions(size: int, overlap: int) -> list[tuple[int, int]]:
    """Ways to cover `size` by 1, 2, 3, ... tiles of equal length that share `overlap`: (number, length)."""
    ways = ((number, math.ceil((size + (number - 1) * overlap) / number)) for number in range(1, size + 1))
    return [(number, length) for number, length in ways if number == 1 or length >= 2 * overlap]
