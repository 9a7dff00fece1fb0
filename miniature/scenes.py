"""The small world that the miniature knows: what a clip may show, drawn from a seed, and what is held out of training.

A `Scene` keeps every word that a caption may use, beside a few continuous numbers that no caption mentions. Lengths are
in units of half the smaller side of the picture; y points down; time runs from 0 to 1 over the clip, whatever its
number of frames. A (colour, shape, motion) triple is held out by a hash of its words, so that the set is the same for
ever, on every machine, and no clip of training ever shows it; each word by itself, and nearly each pair, does occur.
"""

import math
import zlib
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from random import Random

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond")
COLOURS = {
    "red": (0.90, 0.10, 0.10),
    "orange": (1.00, 0.50, 0.05),
    "yellow": (0.97, 0.90, 0.10),
    "green": (0.10, 0.70, 0.15),
    "cyan": (0.10, 0.85, 0.90),
    "blue": (0.12, 0.30, 0.95),
    "purple": (0.55, 0.15, 0.85),
    "pink": (1.00, 0.40, 0.70),
    "white": (0.97, 0.97, 0.97),
}
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
MOTIONS = (*DIRECTIONS, "still", "bouncing", "circling", "spinning", "growing", "shrinking")
SIZES = {"small": 0.24, "medium": 0.30, "large": 0.40}
SPEEDS = {"slowly": 0.55, "": 0.80, "quickly": 1.15}
_STYLE_ODDS = {"": 0.55, "glowing": 0.15, "outlined": 0.15, "shaded": 0.15}
STYLES = tuple(_STYLE_ODDS)
BACKGROUNDS = {
    "black": (0.05, 0.05, 0.06),
    "gray": (0.45, 0.45, 0.45),
    "white": (0.93, 0.93, 0.93),
    "navy": (0.06, 0.09, 0.28),
    "beige": (0.87, 0.81, 0.68),
    "mint": (0.73, 0.90, 0.80),
    "lavender": (0.80, 0.77, 0.92),
}
PATTERNS = ("plain", "gradient", "striped", "checkered")
CAMERAS = ("fixed", "zoom in", "zoom out", "pan left", "pan right")
ORBIT = 0.26
BOUNCE = 0.75
GROWTH = (0.50, 1.15)

_COUNTS = {1: 0.5, 2: 0.28, 3: 0.22}
# More objects are smaller, so that two or three of them fit beside each other and stay apart.
_COUNT_SCALE = {1: 1.0, 2: 0.85, 3: 0.68}
_SPACING = {2: 0.88, 3: 0.63}
_TRIANGLE = 0.37
_PALE = ("white", "beige", "mint", "lavender")
_CHANGING = ("growing", "shrinking")
_IN_PLACE = ("still", "spinning", *_CHANGING)
# The edge of the picture is at 1; objects stay inside this.
_MARGIN = 0.95
# The tips of a star or a triangle stand out beyond the nominal radius.
_TIP = 1.25
_HELD_OUT_ONE_IN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One clip: its words first, then numbers that vary freely.

    row: how two or three objects stand: "horizontal", "vertical" or, for three, "triangle".
    place: centre of the group at half time. angle, phase: radians. turn: sense of a rotation, 1 or -1. tint: factor.
    """

    shape: str
    colour: str
    count: int
    size: str
    motion: str
    speed: str
    style: str
    background: str
    pattern: str
    camera: str
    row: str
    place: tuple[float, float]
    angle: float
    phase: float
    turn: float
    tint: float

    @property
    def radius(self) -> float:
        """Radius of one object, before it grows or shrinks."""
        return SIZES[self.size] * _COUNT_SCALE[self.count]

    @property
    def offsets(self) -> tuple[tuple[float, float], ...]:
        """Where each object stands, relative to the centre of the group."""
        if self.count == 1:
            return ((0.0, 0.0),)
        if self.row == "triangle":
            angles = [math.pi * (2 * i / 3 - 0.5) for i in range(3)]
            return tuple((_TRIANGLE * math.cos(angle), _TRIANGLE * math.sin(angle)) for angle in angles)
        steps = [(i - (self.count - 1) / 2) * _SPACING[self.count] for i in range(self.count)]
        return tuple((0.0, step) if self.row == "vertical" else (step, 0.0) for step in steps)


def is_held_out(colour: str, shape: str, motion: str) -> bool:
    """Whether no clip of training shows this combination."""
    return zlib.crc32(f"{colour} {shape} {motion}".encode("ascii")) % _HELD_OUT_ONE_IN == 0


@cache
def triples(held_out: bool, motions: tuple[str, ...] = MOTIONS) -> tuple[tuple[str, str, str], ...]:  # noqa: FBT001
    """All (colour, shape, motion) with one of `motions` that are held out, or all that training may show."""
    every = product(COLOURS, SHAPES, motions)
    return tuple(triple for triple in every if _is_visible(triple) and is_held_out(*triple) is held_out)


def draw_scene(rng: Random, *, held_out: bool = False, motions: tuple[str, ...] = MOTIONS) -> Scene:
    """One scene from the training world, or from the held-out one; `motions` narrows the kinds of motion."""
    colour, shape, motion = rng.choice(triples(held_out, motions))
    count = rng.choices(tuple(_COUNTS), tuple(_COUNTS.values()))[0]
    has_speed = motion in DIRECTIONS or motion == "spinning"
    may_be_large = count == 1 or (count == 2 and motion not in (*_CHANGING, "circling"))
    # White needs a darker ground, and shading would make it the gray of one.
    unlike, styles = (_PALE, _STYLE_ODDS | {"shaded": 0.0}) if colour == "white" else ((), _STYLE_ODDS)
    scene = Scene(
        shape=shape,
        colour=colour,
        count=count,
        size=rng.choice(tuple(SIZES) if may_be_large else ("small", "medium")),
        motion=motion,
        speed=rng.choices(tuple(SPEEDS), (0.2, 0.6, 0.2))[0] if has_speed else "",
        style=rng.choices(STYLES, tuple(styles.values()))[0],
        background=rng.choice([name for name in BACKGROUNDS if name not in unlike]),
        pattern=rng.choices(PATTERNS, (0.4, 0.2, 0.2, 0.2))[0],
        camera=rng.choice(CAMERAS[1:]) if motion in ("still", "spinning") and rng.random() < 0.4 else "fixed",
        row=rng.choice(_rows(count, motion)),
        place=(0.0, 0.0),
        angle=rng.uniform(-0.12, 0.12),
        phase=rng.uniform(0.0, 2 * math.pi),
        turn=rng.choice((-1.0, 1.0)),
        tint=rng.uniform(0.92, 1.04),
    )
    room = [max(_MARGIN - extent, 0.0) for extent in reach(scene)]
    return replace(scene, place=(rng.uniform(-1, 1) * room[0], rng.uniform(-1, 1) * room[1]))


def reach(scene: Scene) -> tuple[float, float]:
    """How far the group extends from its centre in x and y over the whole clip, motion and growth included."""
    radius = _TIP * scene.radius * (GROWTH[1] if scene.motion in _CHANGING else 1.0)
    motion = scene.motion
    way = DIRECTIONS.get(motion, (0.0, 0.0))
    swing = {"circling": (ORBIT, ORBIT), "bouncing": (0.0, BOUNCE / 2)}.get(motion, (0.0, 0.0))
    x, y = (
        max(abs(offset[axis]) for offset in scene.offsets)
        + radius
        + abs(way[axis]) * SPEEDS[scene.speed] / 2
        + swing[axis]
        for axis in (0, 1)
    )
    return x, y


def _rows(count: int, motion: str) -> tuple[str, ...]:
    # Objects that travel stand across their way: in a line along it they would not fit into the picture.
    if motion in DIRECTIONS:
        return ("vertical",) if motion in ("left", "right") else ("horizontal",)
    if motion in _IN_PLACE:
        return ("horizontal", "vertical") if count < 3 else ("horizontal", "vertical", "triangle")
    if count < 3:
        return ("horizontal",)
    return ("triangle",) if motion == "circling" else ("horizontal", "triangle")


def _is_visible(triple: tuple[str, str, str]) -> bool:
    # Nobody can see a disc or a ring turn.
    return not (triple[2] == "spinning" and triple[1] in ("circle", "ring"))
