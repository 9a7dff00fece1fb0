"""Renders scenes as antialiased clips, in batches, on any device: (B, 3, T, H, W) in [-1, 1], without noise.

Every shape is a signed distance (negative inside; exact near its edge, which is all that antialiasing asks), so a clip
is a closed formula of pixel and time and a batch of any scenes is one stretch of elementwise operations. Two formulas
of polygons cover all shapes but the disc and the cross: see `glyph_distance`. A scene enters as one row of numbers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .scenes import BACKGROUNDS, BOUNCE, COLOURS, DIRECTIONS, GROWTH, ORBIT, SPEEDS, Scene

MAX_OBJECTS = 3
_ZOOM = 1.35
_PAN = 0.5
_TEXTURE_CELL = 0.5
_TEXTURE_DEPTH = 0.10


@dataclass(frozen=True, slots=True)
class ClipSize:
    """Frames (4n + 1), rows and columns."""

    num_frames: int
    height: int
    width: int


class Glyph(NamedTuple):
    """A shape in numbers.

    A star of `points` tips at radius `scale`, whose notches lie at `notch` times that; notch = cos(pi / points) makes
    it a regular polygon. stretch: factor on the width. rest: angle of a tip at rest, from the top. kind: 0 star,
    1 disc, 2 cross. hollow: half-width of the rim of a hollow shape, 0 for a full one.
    """

    points: float
    notch: float
    stretch: float
    rest: float
    scale: float
    kind: float
    hollow: float


# Scales give shapes of the same nominal radius about the same visual weight.
GLYPHS = {
    "circle": Glyph(4.0, 0.7, 1.0, 0.0, 1.0, 1.0, 0.0),
    "ring": Glyph(4.0, 0.7, 1.0, 0.0, 0.85, 1.0, 0.22),
    "square": Glyph(4.0, math.cos(math.pi / 4), 1.0, math.pi / 4, 1.25, 0.0, 0.0),
    "diamond": Glyph(4.0, math.cos(math.pi / 4), 0.6, 0.0, 1.32, 0.0, 0.0),
    "triangle": Glyph(3.0, 0.5, 1.0, 0.0, 1.30, 0.0, 0.0),
    "star": Glyph(5.0, 0.45, 1.0, 0.0, 1.32, 0.0, 0.0),
    "cross": Glyph(4.0, 0.7, 1.0, 0.0, 1.10, 2.0, 0.0),
}
_CROSS_ARM = 0.36


class SceneNumbers(NamedTuple):
    """Scenes as tensors whose first axis is B; see `numbers`."""

    glyph: Tensor  # (B, 7) in the order of `Glyph`
    offsets: Tensor  # (B, MAX_OBJECTS, 2), absent objects far away
    path: Tensor  # (B, 7): place x y, travel x y, bounce, orbit, phase
    body: Tensor  # (B, 4): radius at the start, at the end, angle at the start, whole turns
    camera: Tensor  # (B, 3): zoom at the start, at the end, pan
    fill: Tensor  # (B, 3) colour in [0, 1]
    ground: Tensor  # (B, 3)
    pattern: Tensor  # (B, 3) weights of gradient, stripes, checkers
    style: Tensor  # (B, 3) weights of glow, outline, shade


Painter = Callable[[SceneNumbers, ClipSize], Tensor]


def render(
    scenes: Sequence[Scene], size: ClipSize, device: torch.device | str = "cpu", painter: Painter | None = None
) -> Tensor:
    """The clips of `scenes`: (B, 3, T, H, W) float32 in [-1, 1]. `painter` may be a compiled `paint`."""
    return (painter or paint)(numbers(scenes, device), size)


def numbers(scenes: Sequence[Scene], device: torch.device | str = "cpu") -> SceneNumbers:
    """Scenes as rows of numbers on `device`, in one transfer."""
    rows = torch.tensor([_row(scene) for scene in scenes], dtype=torch.float32)
    parts = rows.to(device, non_blocking=True).split((7, 2 * MAX_OBJECTS, 7, 4, 3, 3, 3, 3, 3), dim=1)
    glyph, offsets, *rest = parts
    return SceneNumbers(glyph, offsets.unflatten(1, (MAX_OBJECTS, 2)), *rest)


def paint(scenes: SceneNumbers, size: ClipSize) -> Tensor:
    """The picture of every pixel at every time, from the numbers alone."""
    device = scenes.fill.device
    time = torch.linspace(0, 1, size.num_frames, device=device).view(1, -1, 1, 1)
    pixel = 2.0 / min(size.height, size.width)
    y = ((torch.arange(size.height, device=device) + 0.5) * pixel - size.height * pixel / 2).view(1, 1, -1, 1)
    x = ((torch.arange(size.width, device=device) + 0.5) * pixel - size.width * pixel / 2).view(1, 1, 1, -1)
    zoom_start, zoom_end, pan = _columns(scenes.camera)
    zoom = zoom_start + (zoom_end - zoom_start) * time
    x, y = x / zoom + pan * (time - 0.5), y / zoom
    distance, height, radius = _distance(scenes, x, y, time)
    picture = _background(scenes, x, y)
    return _composite(picture, scenes, distance, height, radius, pixel / zoom) * 2 - 1


def glyph_distance(glyph: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance of a shape of radius 1 at the origin; `glyph` (7, ...) broadcasts against x and y."""
    points, notch, stretch, rest, scale, kind, hollow = glyph.unbind(0)
    x, y = x / stretch, y
    length = (x * x + y * y).sqrt()
    # Fold the plane into one half-tip: the angle from the nearest tip, then the line from tip to notch.
    half = math.pi / points
    angle = torch.remainder(torch.atan2(x, -y) + rest + half, 2 * half) - half
    along, beside = length * angle.cos(), (length * angle.sin()).abs()
    edge_x, edge_y = notch * half.cos() - 1, notch * half.sin()
    star = ((along - scale) * edge_y - beside * edge_x) / (edge_x * edge_x + edge_y * edge_y).sqrt() * stretch
    disc = length - scale
    near, far = torch.minimum(x.abs(), y.abs()), torch.maximum(x.abs(), y.abs())
    cross = torch.maximum(far - scale, near - _CROSS_ARM * scale)
    distance = torch.where(kind == 0, star, torch.where(kind == 1, disc, cross))
    return torch.where(hollow > 0, distance.abs() - hollow, distance)


def _row(scene: Scene) -> list[float]:
    far = (99.0, 99.0)
    offsets = [*scene.offsets, *([far] * (MAX_OBJECTS - scene.count))]
    way = DIRECTIONS.get(scene.motion, (0.0, 0.0))
    travel = SPEEDS[scene.speed]
    orbit, bounce = ORBIT * (scene.motion == "circling"), BOUNCE * (scene.motion == "bouncing")
    path = [*scene.place, way[0] * travel, way[1] * travel, bounce, orbit * scene.turn, scene.phase]
    growth = {"growing": GROWTH, "shrinking": GROWTH[::-1]}.get(scene.motion, (1.0, 1.0))
    turns = scene.turn * travel if scene.motion == "spinning" else 0.0
    body = [scene.radius * growth[0], scene.radius * growth[1], scene.angle, turns]
    zoom = {"zoom in": (1.0, _ZOOM), "zoom out": (_ZOOM, 1.0)}.get(scene.camera, (1.0, 1.0))
    camera = [*zoom, {"pan left": -_PAN, "pan right": _PAN}.get(scene.camera, 0.0)]
    fill = [min(channel * scene.tint, 1.0) for channel in COLOURS[scene.colour]]
    patterns = [float(scene.pattern == name) for name in ("gradient", "striped", "checkered")]
    styles = [float(scene.style == name) for name in ("glowing", "outlined", "shaded")]
    flat_offsets = [value for offset in offsets for value in offset]
    return [
        *GLYPHS[scene.shape], *flat_offsets, *path, *body, *camera, *fill, *BACKGROUNDS[scene.background],
        *patterns, *styles,
    ]  # fmt: skip


def _columns(values: Tensor) -> list[Tensor]:
    """The columns of (B, K), each shaped to broadcast against (B, T, H, W)."""
    return [column.view(-1, 1, 1, 1) for column in values.unbind(1)]


def _distance(scenes: SceneNumbers, x: Tensor, y: Tensor, time: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Signed distance to the nearest object, height within it in radii, and its radius, each (B, T, H, W)."""
    place_x, place_y, travel_x, travel_y, bounce, orbit, phase = _columns(scenes.path)
    start, end, angle, turns = _columns(scenes.body)
    turn = 2 * math.pi * time * orbit.sign() + phase
    centre_x = place_x + travel_x * (time - 0.5) + orbit.abs() * turn.cos()
    # Two hops: the ground is at +bounce / 2.
    hop = bounce * (0.5 - (2 * math.pi * time + phase).sin().abs())
    centre_y = place_y + travel_y * (time - 0.5) + orbit.abs() * turn.sin() + hop
    radius = start + (end - start) * time
    tilt = angle + 2 * math.pi * turns * time
    cos, sin = tilt.cos() / radius, tilt.sin() / radius
    glyph = scenes.glyph.T.reshape(7, -1, 1, 1, 1)
    nearest = height = None
    for index in range(MAX_OBJECTS):
        offset_x, offset_y = _columns(scenes.offsets[:, index])
        dx, dy = x - centre_x - offset_x, y - centre_y - offset_y
        distance = glyph_distance(glyph, dx * cos + dy * sin, dy * cos - dx * sin)
        if nearest is None:
            nearest, height = distance, dy / radius
        else:
            closer = distance < nearest
            nearest, height = torch.where(closer, distance, nearest), torch.where(closer, dy / radius, height)
    return nearest * radius, height, radius


def _background(scenes: SceneNumbers, x: Tensor, y: Tensor) -> Tensor:
    """(B, 3, T, H, W) in [0, 1]: the ground colour, made a little darker and lighter by the pattern."""
    gradient, striped, checkered = _columns(scenes.pattern)
    stripes = _soft_square(x + 0 * y)
    wave = gradient * -y.clamp(-1.2, 1.2) + striped * stripes + checkered * stripes * _soft_square(y + 0 * x)
    depth = 1 + 1.5 * gradient
    return (scenes.ground.view(-1, 3, 1, 1, 1) + (_TEXTURE_DEPTH * depth * wave).unsqueeze(1)).clamp(0, 1)


def _soft_square(position: Tensor) -> Tensor:
    # A square wave with edges about two pixels wide at 128 pixels: sharper ones would flicker when the camera moves.
    return (torch.sin(position * (math.pi / _TEXTURE_CELL)) * 10).clamp(-1, 1)


def _composite(
    picture: Tensor, scenes: SceneNumbers, distance: Tensor, height: Tensor, radius: Tensor, pixel: Tensor
) -> Tensor:
    glow, outline, shade = _columns(scenes.style)
    fill = scenes.fill.view(-1, 3, 1, 1, 1)
    halo = 0.45 * glow * torch.exp(-distance.clamp(min=0) / (0.35 * radius))
    picture = picture + (fill - picture) * halo.unsqueeze(1)
    rim = outline * ((distance + 0.14 * radius) / pixel + 0.5).clamp(0, 1)
    light = (1 - 0.65 * rim) * (1 - shade * (0.15 + 0.3 * height.clamp(-1, 1)))
    coverage = (0.5 - distance / pixel).clamp(0, 1).unsqueeze(1)
    return picture + ((fill * light.unsqueeze(1)).clamp(0, 1) - picture) * coverage
