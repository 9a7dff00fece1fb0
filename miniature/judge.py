"""Reads a clip and says what it shows: colour, shape, number and motion, by classical vision on the CPU.

It knows the world of `scenes.py` and nothing of any model. What is far in CIELAB from the colours that the border of
the picture keeps over the whole clip is an object; its colour is a vote of hues; its shape is the renderer's own
outline that covers it best, over all turns; its motion is read from the path of the centroid and from its area.
"""

import math
from collections import Counter
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from skimage.color import rgb2hsv, rgb2lab
from skimage.measure import label
from skimage.morphology import erosion

from .clips import GLYPHS, glyph_distance
from .scenes import COLOURS, Scene

# CIELAB distances: neighbours in the background differ by less, objects from any background by more.
_LEAST_CONTRAST, _MOST_CONTRAST = 18.0, 40.0
_BORDER = 3
_BORDER_STEP = 6.0
_BORDER_SHARE = 0.03
# Fractions of the picture: what is smaller is dirt.
_LEAST_AREA = 0.0012
_LEAST_SHARE_OF_LARGEST = 0.25
_CANVAS, _CANVAS_REACH = 28, 1.3
# Half-sides of the picture over the whole clip; the slowest motion of the world covers 0.55.
_LEAST_TRAVEL, _LEAST_SWING = 0.25, 0.22
_LEAST_NET_SHARE = 0.6
_GROWTH = 2.4
_LEAST_TURN_OVERLAP = 0.86


@dataclass(frozen=True, slots=True)
class Reading:
    """What a clip shows, in the words of `scenes.py`; empty and 0 where nothing could be read."""

    colour: str = ""
    shape: str = ""
    count: int = 0
    motion: str = ""

    def agrees_with(self, scene: Scene) -> dict[str, bool]:
        """Which of the four are as the scene says."""
        return {name: getattr(self, name) == getattr(scene, name) for name in ("colour", "shape", "count", "motion")}


@dataclass(frozen=True, slots=True)
class _Frame:
    """The objects of one frame. Areas in pixels; centre in half-sides; outlines (N, canvas, canvas)."""

    area: float
    centre: tuple[float, float]
    count: int
    outlines: np.ndarray
    votes: Counter


def read_clip(video: np.ndarray, *, step: int = 2) -> Reading:
    """What a video (3, T, H, W) in [-1, 1] shows, looking at every `step`-th frame."""
    frames = np.clip((np.moveaxis(video[:, ::step], 0, -1).astype(np.float32) + 1) / 2, 0, 1)
    distance = _contrast(rgb2lab(frames))
    seen = [_look(rgb, far, _threshold(distance)) for rgb, far in zip(frames, distance, strict=True)]
    found = [frame for frame in seen if frame is not None]
    if len(found) < max(2, len(seen) // 2):
        return Reading()
    votes = sum((frame.votes for frame in found), Counter())
    shape = _shape(np.concatenate([frame.outlines for frame in found]))
    count = Counter(frame.count for frame in found).most_common(1)[0][0]
    return Reading(votes.most_common(1)[0][0] if votes else "", shape, count, _motion(found, shape))


def _contrast(lab: np.ndarray) -> np.ndarray:
    """(T, H, W, 3) -> distance of every pixel from the nearest lasting colour of the border."""
    ring = np.ones(lab.shape[1:3], dtype=bool)
    ring[_BORDER:-_BORDER, _BORDER:-_BORDER] = False
    cells, inverse, counts = np.unique(
        np.round(lab[:, ring].reshape(-1, 3) / _BORDER_STEP), axis=0, return_inverse=True, return_counts=True
    )
    border = lab[:, ring].reshape(-1, 3)
    lasting = np.flatnonzero(counts >= _BORDER_SHARE * len(border))
    if not lasting.size:
        lasting = np.array([counts.argmax()])
    means = np.stack([border[inverse.ravel() == index].mean(0) for index in lasting])
    assert len(cells) >= len(means)
    distance = np.full(lab.shape[:3], np.inf, dtype=np.float32)
    for mean in means:
        np.minimum(distance, np.linalg.norm(lab - mean, axis=-1), out=distance)
    return distance


def _threshold(distance: np.ndarray) -> float:
    """Half the typical contrast, so that neither a glow nor an antialiased edge counts as object."""
    far = distance[distance > _LEAST_CONTRAST]
    typical = float(np.percentile(far, 75)) if far.size else 0.0
    return min(max(0.5 * typical, _LEAST_CONTRAST), _MOST_CONTRAST)


def _look(rgb: np.ndarray, distance: np.ndarray, threshold: float) -> _Frame | None:
    mask = distance > threshold
    regions = label(mask, connectivity=2)
    areas = np.bincount(regions.ravel())[1:]
    least = max(_LEAST_AREA * mask.size, _LEAST_SHARE_OF_LARGEST * areas.max(initial=0))
    kept = [index + 1 for index, area in enumerate(areas) if area >= least]
    if not kept:
        return None
    objects = np.isin(regions, kept)
    rows, columns = np.nonzero(objects)
    half = min(mask.shape) / 2
    centre = ((columns.mean() + 0.5 - mask.shape[1] / 2) / half, (rows.mean() + 0.5 - mask.shape[0] / 2) / half)
    outlines = np.stack([_outline(regions == index) for index in kept])
    return _Frame(float(len(rows)), centre, len(kept), outlines, _vote(rgb, objects))


def _vote(rgb: np.ndarray, objects: np.ndarray) -> Counter:
    """Pixels per colour name, edges left out where something remains."""
    core = erosion(objects, np.ones((3, 3), dtype=bool))
    pixels = rgb[core if core.any() else objects]
    hue, saturation, value = rgb2hsv(pixels).T
    pale = (saturation < 0.25) & (value > 0.5)
    names, hues = _hues()
    apart = np.abs((hue[:, None] - hues[None] + 0.5) % 1 - 0.5).argmin(1)
    votes = Counter({"white": int(pale.sum())})
    # Dark and dull pixels (an outline, a shadow) have no reliable hue.
    clear = ~pale & (saturation > 0.3) & (value > 0.3)
    votes.update(names[index] for index in apart[clear])
    return +votes


@cache
def _hues() -> tuple[tuple[str, ...], np.ndarray]:
    names = tuple(name for name in COLOURS if name != "white")
    return names, rgb2hsv(np.array([COLOURS[name] for name in names]))[:, 0]


def _outline(region: np.ndarray) -> np.ndarray:
    """A region on a small canvas: centred, and scaled to the same area whatever its size."""
    rows, columns = np.nonzero(region)
    scale = math.sqrt(len(rows))
    grid = (np.arange(_CANVAS) + 0.5) / _CANVAS * 2 - 1
    y = np.round(rows.mean() + grid * _CANVAS_REACH * scale).astype(int)
    x = np.round(columns.mean() + grid * _CANVAS_REACH * scale).astype(int)
    inside = ((y >= 0) & (y < region.shape[0]))[:, None] & ((x >= 0) & (x < region.shape[1]))[None]
    return region[y.clip(0, region.shape[0] - 1)][:, x.clip(0, region.shape[1] - 1)] & inside


@cache
def _templates() -> tuple[tuple[str, ...], np.ndarray]:
    """Outlines of every shape at every turn, as `_outline` sees them: names and (K, canvas * canvas)."""
    names, outlines = [], []
    grid = torch.linspace(-2, 2, 161)
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    for name, glyph in GLYPHS.items():
        numbers = torch.tensor(glyph).view(7, 1, 1)
        for turn in torch.arange(0, 360, 6).deg2rad() if name not in ("circle", "ring") else torch.zeros(1):
            cos, sin = turn.cos(), turn.sin()
            inside = glyph_distance(numbers, x * cos + y * sin, y * cos - x * sin) < 0
            names.append(name)
            outlines.append(_outline(inside.numpy()).ravel())
    return tuple(names), np.stack(outlines).astype(np.float32)


def _overlap(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair of flat masks: (N, P), (K, P) -> (N, K)."""
    common = some @ others.T
    return common / (some.sum(1)[:, None] + others.sum(1)[None] - common)


def _shape(outlines: np.ndarray) -> str:
    names, templates = _templates()
    overlap = _overlap(outlines.reshape(len(outlines), -1).astype(np.float32), templates)
    scores = {}
    for name in GLYPHS:
        mine = [index for index, other in enumerate(names) if other == name]
        scores[name] = overlap[:, mine].max(1).mean()
    return max(scores, key=scores.__getitem__)


def _motion(frames: list[_Frame], shape: str) -> str:
    path = np.array([frame.centre for frame in frames])
    area = np.array([frame.area for frame in frames])
    ends = max(len(path) // 8, 1)
    travel = path[-ends:].mean(0) - path[:ends].mean(0)
    swing = path.max(0) - path.min(0)
    axis = int(np.abs(travel).argmax())
    # A path that returns is no direction, wherever it ends.
    if abs(travel[axis]) > max(_LEAST_TRAVEL, _LEAST_NET_SHARE * swing.max()):
        return (("left", "right"), ("up", "down"))[axis][int(travel[axis] > 0)]
    if swing[1] > _LEAST_SWING:
        return "circling" if swing[0] > _LEAST_SWING else "bouncing"
    change = area[-ends:].mean() / area[:ends].mean()
    if change > _GROWTH or change < 1 / _GROWTH:
        return "growing" if change > 1 else "shrinking"
    return "spinning" if shape not in ("circle", "ring") and _turns(frames) else "still"


def _turns(frames: list[_Frame]) -> bool:
    """Whether the first object's outline leaves the one it began with."""
    outlines = np.stack([frame.outlines[0] for frame in frames]).reshape(len(frames), -1).astype(np.float32)
    return float(np.median(_overlap(outlines, outlines[:1]))) < _LEAST_TURN_OVERLAP
