"""Rotary positions: against complex float64 arithmetic, by their defining property, and the cache."""

import math

import pytest
import torch
from torch import Tensor

from wan_core.kernels.block import rotate
from wan_core.models.rope import RopeCache, axis_widths, make_rope

CPU = torch.device("cpu")
GRID = (3, 4, 5)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def turned_by_complex_numbers(x: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """The definition, token by token: pair i of an axis times exp(1j * position * 10000 ** (-2i / width))."""
    head_dim = x.shape[-1]
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
    out = torch.empty_like(pairs)
    positions = [(t, h, w) for t in range(grid[0]) for h in range(grid[1]) for w in range(grid[2])]
    for token, position in enumerate(positions):
        angles = [
            place * 10000.0 ** (-2 * i / width)
            for place, width in zip(position, axis_widths(head_dim), strict=True)
            for i in range(width // 2)
        ]
        out[:, token] = pairs[:, token] * torch.exp(1j * torch.tensor(angles, dtype=torch.float64))
    return torch.view_as_real(out).flatten(-2)


@pytest.mark.parametrize(("head_dim", "widths"), [(128, (44, 42, 42)), (64, (24, 20, 20)), (12, (4, 4, 4))])
def test_axis_widths(head_dim: int, widths: tuple[int, int, int]) -> None:
    assert axis_widths(head_dim) == widths


@pytest.mark.parametrize("head_dim", [128, 64, 32])
def test_rotation_equals_complex_arithmetic(head_dim: int) -> None:
    x = draw(2, 60, 3, head_dim)
    got = rotate(x, *make_rope(GRID, head_dim, CPU))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), turned_by_complex_numbers(x, GRID), rtol=0, atol=1e-6)


@pytest.mark.parametrize("pair", [0, 1, 5])
def test_far_positions_are_as_exact_as_near_ones(pair: int) -> None:
    """A table whose angles were computed in float32 is off by up to 3e-5 at the end of a long axis."""
    rope = make_rope((1, 1, 1000), 128, CPU)
    columns = axis_widths(128)[2]
    angles = [place * 10000.0 ** (-2 * pair / columns) for place in range(1000)]
    expected = torch.tensor([math.sin(angle) for angle in angles], dtype=torch.float64)
    got = rope.sin[:, 0, 64 - columns // 2 + pair].double()
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_products_depend_on_distance_along_each_axis(axis: int) -> None:
    """Shifting query and key by the same step leaves their product alone; moving one of them does not."""
    grid = [2, 2, 2]
    grid[axis] = 8
    query, key = draw(1, 1, 1, 128, seed=1), draw(1, 1, 1, 128, seed=2)
    rope = make_rope(tuple(grid), 128, CPU)
    num_tokens = grid[0] * grid[1] * grid[2]
    queries = rotate(query.expand(1, num_tokens, 1, 128), *rope).unflatten(1, grid)
    keys = rotate(key.expand(1, num_tokens, 1, 128), *rope).unflatten(1, grid)
    queries, keys = queries.movedim(1 + axis, 1)[0, :, 0, 0, 0], keys.movedim(1 + axis, 1)[0, :, 0, 0, 0]
    products = queries @ keys.T
    torch.testing.assert_close(products[:-1, :-1], products[1:, 1:], rtol=0, atol=2e-5)
    assert (products[0] - products[0, 0]).abs()[1:].min() > 1e-3


def test_tables_are_real_float32() -> None:
    rope = make_rope(GRID, 128, CPU)
    for table in rope:
        assert table.dtype == torch.float32
        assert table.shape == (60, 1, 64)


def test_cache_serves_the_same_tables_for_the_same_grid() -> None:
    cache = RopeCache(128)
    first = cache(GRID, CPU)
    assert cache(GRID, CPU) is first
    assert cache((1, 4, 5), CPU).cos.shape[0] == 20
    assert cache(GRID, torch.device("meta")).cos.is_meta


def test_cache_forgets_the_oldest_grid() -> None:
    cache = RopeCache(128, capacity=2)
    tables = [cache((1, 1, size), CPU) for size in (1, 2, 3)]
    assert cache((1, 1, 3), CPU) is tables[2]
    assert cache((1, 1, 2), CPU) is tables[1]
    assert cache((1, 1, 1), CPU) is not tables[0]


def test_tables_made_in_inference_mode_serve_training() -> None:
    cache = RopeCache(128)
    with torch.inference_mode():
        cache(GRID, CPU)
    x = draw(1, 60, 1, 128).requires_grad_()
    rotate(x, *cache(GRID, CPU)).sum().backward()
    assert x.grad is not None
