"""Rotary positions over three axes (RoFormer, arXiv:2104.09864; frames, rows and columns of the token grid).

The head dimension is split into one part per axis, and inside a part neighbouring features (2i, 2i + 1) form the pair
that is turned by `position * 10000 ** (-2i / width)`. That interleaving is the layout rule that bites: the "half and
half" form of many language models gives other numbers from the same weights.

Angles are computed in float64 once per grid and stored as real float32 tables; at run time nothing is complex (which
torch.compile cannot generate code for) and nothing is float64 (twice the traffic). What is stored differs from the
reference's complex float64 by float32 rounding alone.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from einops import repeat
from torch import Tensor

THETA = 10000.0


class Rope(NamedTuple):
    """Tables of one token grid: `cos` and `sin`, each (L, 1, D / 2) float32, the middle axis standing for the heads."""

    cos: Tensor
    sin: Tensor


def axis_widths(head_dim: int) -> tuple[int, int, int]:
    """How many of the `head_dim` features turn with the frame, the row and the column; 128 gives (44, 42, 42)."""
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial, spatial


def make_rope(grid: tuple[int, int, int], head_dim: int, device: torch.device) -> Rope:
    """Tables for the tokens of a `grid` (T, H, W), ordered as "(T H W)"."""
    angles = list(_axis_angles(grid, head_dim))
    return Rope(
        cos=_lay_out([angle.cos() for angle in angles], grid, device),
        sin=_lay_out([angle.sin() for angle in angles], grid, device),
    )


class RopeCache:
    """Tables of the latest grids, by grid and device.

    Holds no tensor until it is called, so that a model can be built on the meta device. At 75,600 tokens an entry is
    39 MB; the oldest goes when there are more than `capacity`.
    """

    def __init__(self, head_dim: int, *, capacity: int = 2) -> None:
        self.head_dim = head_dim
        self.capacity = capacity
        self._tables: dict[tuple[tuple[int, int, int], torch.device], Rope] = {}

    def __call__(self, grid: tuple[int, int, int], device: torch.device) -> Rope:
        key = (grid, device)
        if key not in self._tables:
            while len(self._tables) >= self.capacity:
                del self._tables[next(iter(self._tables))]
            # The cache outlives the run that fills it, and an inference tensor could not be used in training later.
            with torch.inference_mode(mode=False):
                self._tables[key] = make_rope(grid, self.head_dim, device)
        return self._tables[key]


def _axis_angles(grid: tuple[int, int, int], head_dim: int) -> Iterator[Tensor]:
    """Angles of each axis, (positions, width / 2) float64 on the CPU: a few thousand numbers."""
    for size, width in zip(grid, axis_widths(head_dim), strict=True):
        pairs = torch.arange(0, width, 2, dtype=torch.float64, device="cpu")
        positions = torch.arange(size, dtype=torch.float64, device="cpu")
        yield torch.outer(positions, THETA ** (-pairs / width))


def _lay_out(tables: list[Tensor], grid: tuple[int, int, int], device: torch.device) -> Tensor:
    """One row per token from one float64 table per axis."""
    t, h, w = grid
    frames, rows, columns = (table.to(device=device, dtype=torch.float32) for table in tables)
    parts = (
        repeat(frames, "T D -> (T H W) 1 D", H=h, W=w),
        repeat(rows, "H D -> (T H W) 1 D", T=t, W=w),
        repeat(columns, "W D -> (T H W) 1 D", T=t, H=h),
    )
    return torch.cat(parts, dim=-1)
