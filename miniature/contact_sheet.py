"""Videos on one page: a row of frames under each caption."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import Image, ImageDraw

_FRAMES = 6
_CAPTION_HEIGHT = 18
_COLUMNS = 2
_GAP = 8


def draw_contact_sheet(path: Path, captions: Sequence[str], videos: np.ndarray) -> None:
    """Write a picture of some frames of every video (N, 3, T, H, W) in [-1, 1], two videos to a row."""
    rows = [_row(caption, video) for caption, video in zip(captions, videos, strict=True)]
    rows += [np.full_like(rows[0], 255)] * (-len(rows) % _COLUMNS)
    page = rearrange(np.stack(rows), "(R C) H W RGB -> (R H) (C W) RGB", C=_COLUMNS)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(page).save(path, optimize=True)


def _row(caption: str, video: np.ndarray) -> np.ndarray:
    times = np.linspace(0, video.shape[1] - 1, _FRAMES).round().astype(int)
    frames = ((np.clip(video[:, times].astype(np.float32), -1, 1) + 1) * 127.5).round().astype(np.uint8)
    strip = rearrange(frames, "C T H W -> H (T W) C")
    row = Image.new("RGB", (strip.shape[1] + _GAP, strip.shape[0] + _CAPTION_HEIGHT + _GAP), "white")
    row.paste(Image.fromarray(strip), (0, _CAPTION_HEIGHT))
    ImageDraw.Draw(row).text((2, 3), caption, fill="black")
    return np.asarray(row)
