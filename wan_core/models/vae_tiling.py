"""The VAE in overlapping spatial tiles, for frames that do not fit whole; what they save is in `vae_memory`.

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
from ..specs import video_frames
from .vae21 import Stage, WanVae, run_chunks, video_chunks

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
