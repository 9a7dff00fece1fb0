"""Draws the pack's pictures: icon, banner and the thumbnails of the workflows. No model has a part in them.

    python -m assets.draw

The motif is what the model does: straight paths from noise to a shape, x = (1 - sigma) * shape + sigma * noise, amber
while the high-noise expert runs and teal while the low-noise one does. The thumbnails show the real noise schedule of
each workflow's recipe, one dot a step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from wan_core.recipes import Recipe, SampleRequest, recipe
from wan_core.sampling.experts import split
from wan_core.sampling.schedule import for_request
from wan_core.specs import Expert

HERE = Path(__file__).parent
WORKFLOWS = HERE.parent / "workflows"
NIGHT, DEEP = np.array((9, 12, 26)), np.array((20, 34, 62))
AMBER, TEAL, WHITE = np.array((255, 172, 77)), np.array((53, 208, 186)), np.array((240, 250, 255))
BOUNDARY = 0.55
Points = np.ndarray


def main() -> None:
    icon().save(HERE / "icon.png", optimize=True)
    banner().save(HERE / "banner.jpg", quality=90, optimize=True)
    for name, card in CARDS.items():
        thumbnail(card).save(WORKFLOWS / f"{name}.jpg", quality=88, optimize=True)


def icon(side: int = 400) -> Image.Image:
    """A cloud of noise that becomes a W, in a rounded square."""
    rng = np.random.default_rng(7)
    shape = _text_points("W", int(side * 0.62), 7000, rng)
    shape += (side - (shape.max(0) - shape.min(0))) / 2 - shape.min(0)
    noise = rng.normal(0.0, side * 0.28, shape.shape) + side / 2
    picture = _paths(side, side, shape, noise, strength=0.42)
    mask = Image.new("L", (side * 4, side * 4), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, side * 4 - 1, side * 4 - 1), side * 4 // 6, fill=255)
    picture.putalpha(mask.resize((side, side), Image.Resampling.LANCZOS))
    return picture


def banner(width: int = 1260, height: int = 540) -> Image.Image:
    """The name, drawn by paths that come from a cloud of noise on the left; 21:9."""
    rng = np.random.default_rng(11)
    shape = _text_points("Wan Velocity", 124, 16000, rng)
    size = shape.max(0) - shape.min(0)
    shape += (width - size[0] - 70, (height - size[1]) / 2) - shape.min(0)
    noise = rng.normal(0.0, 1.0, shape.shape) * (60, 100) + (130, height / 2)
    return _paths(width, height, shape, noise, strength=0.42)


def _text_points(text: str, size: int, count: int, rng: np.random.Generator) -> Points:
    """Random points (x, y) inside the letters."""
    fonts = Path(matplotlib.get_data_path(), "fonts", "ttf")
    font = ImageFont.truetype(str(fonts / "DejaVuSans-Bold.ttf"), size)
    left, top, right, bottom = font.getbbox(text)
    mask = Image.new("L", (right - left, bottom - top), 0)
    ImageDraw.Draw(mask).text((-left, -top), text, font=font, fill=255)
    rows, columns = np.nonzero(np.asarray(mask) > 128)
    chosen = rng.integers(0, len(rows), count)
    return np.stack((columns[chosen], rows[chosen]), axis=1) + rng.uniform(0.0, 1.0, (count, 2))


def _paths(width: int, height: int, shape: Points, noise: Points, *, strength: float) -> Image.Image:
    """Straight paths from noise to shape, light adding up on a dark ground."""
    light = np.zeros((height, width, 3))
    for sigma in np.linspace(1.0, 0.0, 160):
        color = AMBER if sigma > BOUNDARY else TEAL
        color = color + (WHITE - color) * max(0.0, 0.6 - sigma * 6.0)
        # A path is faint, its two ends are not: the grain of the noise, and the shape that it becomes.
        weight = strength * (0.012 + 0.5 * (sigma > 0.995) + 0.7 * (sigma < 0.003))
        _splat(light, (1.0 - sigma) * shape + sigma * noise, color * weight)
    lit = Image.fromarray(np.clip(light * 1.5, 0, 255).astype(np.uint8))
    near, far = (np.asarray(lit.filter(ImageFilter.GaussianBlur(radius)), dtype=float) for radius in (2.5, width / 50))
    exposed = (0.6 * _ground(width, height) + light + near + far) / 110.0
    # Film, not a sensor: what is bright saturates softly.
    return Image.fromarray((255.0 * (1.0 - np.exp(-exposed))).astype(np.uint8))


def _splat(light: np.ndarray, points: Points, color: np.ndarray) -> None:
    """Add points to a picture, each shared by the four pixels around it."""
    height, width, _ = light.shape
    base = np.floor(points).astype(int)
    part = points - base
    for dx in (0, 1):
        for dy in (0, 1):
            x, y = base[:, 0] + dx, base[:, 1] + dy
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            share = np.abs(1 - dx - part[:, 0]) * np.abs(1 - dy - part[:, 1])
            np.add.at(light, (y[inside], x[inside]), share[inside, None] * color)


def _ground(width: int, height: int) -> np.ndarray:
    ramp = np.linspace(0.0, 1.0, width)[None, :, None] * 0.6 + np.linspace(0.4, 0.0, height)[:, None, None]
    return NIGHT + (DEEP - NIGHT) * ramp


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A thumbnail: a title, a line below it, and the schedule that is drawn; `twice` draws it for A and B."""

    title: str
    line: str
    recipe: Recipe
    twice: bool = False


CARDS = {
    "wan_velocity_mini_t2v": Card(title="Miniature", line="tiny model, runs anywhere", recipe=recipe("draft")),
    "wan_velocity_t2v_a14b_official": Card(
        title="T2V A14B, official", line="1280 x 720, 81 frames", recipe=recipe("official")
    ),
    "wan_velocity_t2v_a14b_24gb": Card(
        title="T2V A14B in 24 GB", line="832 x 480, 81 frames", recipe=recipe("official-20")
    ),
    "wan_velocity_t2v_a14b_lightning": Card(
        title="T2V A14B, 4 steps", line="Lightning LoRA pair", recipe=recipe("lightning-4")
    ),
    "wan_velocity_compare_profiles": Card(
        title="Compare two profiles", line="A, B, and their difference", recipe=recipe("draft"), twice=True
    ),
    "wan_velocity_native_accelerated": Card(
        title="Native, accelerated", line="ComfyUI's own nodes, our kernels",
        recipe=recipe("official").with_changes(num_steps=20, shift=5.0, solver="euler", boundary=0.84),
    ),
}  # fmt: skip


def thumbnail(card: Card, width: int = 640, height: int = 400) -> Image.Image:
    """The schedule of a recipe, sigma over steps, with the expert of each step by its color."""
    scale = 3
    picture = Image.fromarray(_ground(width * scale, height * scale).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    fonts = Path(matplotlib.get_data_path(), "fonts", "ttf")

    def text(x: int, y: int, what: str, size: int, color: np.ndarray, *, bold: bool = False) -> None:
        name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
        font = ImageFont.truetype(str(fonts / name), size * scale)
        draw.text((x * scale, y * scale), what, font=font, fill=tuple(map(int, color)))

    text(36, 30, card.title, 36, WHITE, bold=True)
    text(36, 82, card.line, 20, (WHITE + DEEP * 2) / 2.2)
    for index in range(2 if card.twice else 1):
        left = 48 if index == 0 else width // 2 + 20
        right = (width // 2 - 20 if index == 0 else width - 48) if card.twice else width - 48
        _curve(draw, card.recipe, lambda x, y: (x * scale, y * scale), (left, 150, right, height - 62), scale)
    chosen = card.recipe
    experts = split(for_request(SampleRequest(recipe=chosen)), chosen.boundary)
    num_high = experts.count(Expert.HIGH)
    text(48, height - 44, f"{num_high} high noise", 18, AMBER)
    text(230, height - 44, f"{len(experts) - num_high} low noise", 18, TEAL)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _curve(
    draw: ImageDraw.ImageDraw,
    chosen: Recipe,
    place: Callable[[float, float], tuple[float, float]],
    box: tuple[int, int, int, int],
    scale: int,
) -> None:
    schedule = for_request(SampleRequest(recipe=chosen))
    experts = split(schedule, chosen.boundary)
    left, top, right, bottom = box
    xs = np.linspace(left, right, len(schedule.sigmas))
    points = [place(x, bottom - (bottom - top) * sigma) for x, sigma in zip(xs, schedule.sigmas, strict=True)]
    draw.line([place(left, bottom), place(right, bottom)], fill=(70, 92, 130), width=scale)
    radius = (5 if len(experts) <= 20 else 3.5) * scale
    for index, expert in enumerate(experts):
        color = tuple(map(int, AMBER if expert is Expert.HIGH else TEAL))
        draw.line([points[index], points[index + 1]], fill=color, width=3 * scale)
        x, y = points[index]
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)


if __name__ == "__main__":
    main()
