"""Tiles: their geometry, their seams, the contract of chunks and progress."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.models.random_vae import draw, random_vae, smooth_latent
from wan_core.errors import InputError
from wan_core.models.vae21 import WanVae
from wan_core.models.vae_tiling import (
    Tile,
    decode_tiled_chunks,
    encode_tiled,
    spans,
)

SMALL_TILE = Tile(height=4, width=4, overlap=2)
# Three eighths of this are more than the 12.25 latent rows that the decoder's convolutions reach.
EXACT_OVERLAP = 34


@pytest.fixture(scope="module")
def vae() -> WanVae:
    return random_vae()


def decode_tiled(vae: WanVae, latent: Tensor, tile: Tile) -> Tensor:
    return torch.cat(list(decode_tiled_chunks(vae, latent, tile)), dim=2)


def relative_error(got: Tensor, expected: Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(
    ("height", "width", "overlap", "said"),
    [
        (64, 64, 0, ["overlap by 0", "at least 1"]),
        (31, 64, 16, ["height of tiles is 31", "at least 32"]),
        (64, 20, 16, ["width of tiles is 20", "at least 32"]),
    ],
)
def test_impossible_tiles_are_refused(height: int, width: int, overlap: int, said: list[str]) -> None:
    with pytest.raises(InputError) as refusal:
        Tile(height=height, width=width, overlap=overlap)
    assert all(part in str(refusal.value) for part in said), refusal.value


@given(st.integers(1, 200), st.integers(1, 16), st.integers(0, 40), st.sampled_from([(1, 8), (8, 1)]))
def test_spans_cover_once_and_overlap(size: int, overlap: int, more: int, scales: tuple[int, int]) -> None:
    source, target = scales
    length = 2 * overlap + more
    cover = spans(size, length, overlap, source=source, target=target)
    total = torch.zeros(size * target)
    for span in cover:
        assert span.source.stop - span.source.start == min(length, size) * source
        assert span.source.start * target == span.target.start * source
        assert span.weights.min() >= 0
        total[span.target] += span.weights
    torch.testing.assert_close(total, torch.ones(size * target), rtol=1e-6, atol=1e-6)
    assert cover[0].target.start == 0
    assert cover[-1].target.stop == size * target
    for before, after in zip(cover, cover[1:], strict=False):
        assert before.target.stop - after.target.start >= overlap * target


def test_tile_over_the_frame_is_the_plain_decode(vae: WanVae) -> None:
    latent = draw(1, 16, 3, 4, 6)
    steps = []
    chunks = decode_tiled_chunks(vae, latent, Tile(), on_progress=lambda done, total: steps.append((done, total)))
    first = next(chunks)
    assert steps == [(1, 3)]  # the chunks stream
    assert torch.equal(torch.cat([first, *chunks], dim=2), vae.decode(latent))
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_chunks_and_progress(vae: WanVae) -> None:
    steps = []
    latent = draw(2, 16, 3, 6, 7)
    chunks = list(
        decode_tiled_chunks(vae, latent, SMALL_TILE, on_progress=lambda done, total: steps.append((done, total)))
    )
    assert [tuple(chunk.shape) for chunk in chunks] == [(2, 3, frames, 48, 56) for frames in (1, 4, 4)]
    assert all(chunk.abs().max() <= 1 for chunk in chunks)
    num_tiles = 2 * 3
    assert steps == [(done, 3 * num_tiles) for done in range(1, 3 * num_tiles + 1)]


def test_stopped_decode_leaves_nothing(vae: WanVae) -> None:
    latent = draw(1, 16, 2, 6, 7)
    before = decode_tiled(vae, latent, SMALL_TILE)

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(decode_tiled_chunks(vae, latent, SMALL_TILE, on_progress=stop))
    assert torch.equal(decode_tiled(vae, latent, SMALL_TILE), before)


def test_time_is_exact_in_tiles(vae: WanVae) -> None:
    latent = draw(1, 16, 3, 6, 7)
    whole = decode_tiled(vae, latent, SMALL_TILE)
    assert torch.equal(decode_tiled(vae, latent[:, :, :2], SMALL_TILE), whole[:, :, :5])


def test_wrong_input_is_refused_at_the_call(vae: WanVae) -> None:
    with pytest.raises(InputError, match="48 channels"):
        decode_tiled_chunks(vae, torch.zeros(1, 48, 2, 10, 14), SMALL_TILE)
    with pytest.raises(InputError, match="4 frames"):
        encode_tiled(vae, torch.zeros(1, 3, 4, 80, 112), SMALL_TILE)


@pytest.mark.parametrize("vertical", [False, True])
def test_wide_overlap_is_exact(vae: WanVae, vertical: bool) -> None:
    tile = Tile(height=2 * EXACT_OVERLAP, width=2 * EXACT_OVERLAP, overlap=EXACT_OVERLAP)
    size = (2, tile.width + 10)
    latent = draw(1, 16, 2, *(reversed(size) if vertical else size))
    assert relative_error(decode_tiled(vae, latent, tile), vae.decode(latent)) <= 1e-5


@pytest.mark.parametrize("vertical", [False, True])
def test_wide_overlap_is_exact_for_the_encoder(vae: WanVae, vertical: bool) -> None:
    tile = Tile(height=2 * EXACT_OVERLAP, width=2 * EXACT_OVERLAP, overlap=EXACT_OVERLAP)
    size = (16, 8 * (tile.width + 10))
    video = draw(1, 3, 5, *(reversed(size) if vertical else size)).clamp(-1, 1)
    steps = []
    tiled = encode_tiled(vae, video, tile, on_progress=lambda done, total: steps.append((done, total)))
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert relative_error(tiled, vae.encode(video)) <= 1e-5


def steps_between_columns(video: Tensor) -> Tensor:
    """Mean absolute difference of each two neighbouring columns, over all frames, rows and colours."""
    return video.diff(dim=-1).abs().mean(dim=(0, 1, 2, 3))


def halves(overlap: int) -> Tile:
    """Two of these cover a width of 80 and share `overlap`."""
    return Tile(height=48, width=40 + overlap // 2, overlap=overlap)


def added_step(tiled: Tensor, whole: Tensor) -> float:
    """Largest step that tiling adds between two columns, over the mean step of the picture itself."""
    return (steps_between_columns(tiled - whole).max() / steps_between_columns(whole).mean()).item()


@pytest.mark.parametrize("seed", [0, 1])
def test_no_seams(seed: int) -> None:
    """On a smooth latent, where a seam would show: at the default overlap tiling adds no step that could be seen.

    Outside the overlap the tiled decode is the untiled one, so the error there is no measure; the picture is. Measured
    over four seeds: added steps of 0.1 to 0.4 % of the picture's own, an error of at most 5e-5 in the norm and 4e-4
    anywhere. An overlap of 2 shows that the measure sees seams.
    """
    vae = random_vae(seed=seed)
    latent = smooth_latent(1, 8, 80, seed=seed)
    whole = vae.decode(latent)
    tiled = decode_tiled(vae, latent, halves(Tile().overlap))
    error = (tiled - whole).abs()
    assert added_step(tiled, whole) <= 0.02
    assert relative_error(tiled, whole) <= 1e-3
    assert error.max() <= 1 / 255  # half a step of an 8-bit picture
    assert error[..., : 8 * 32].max() <= 1e-5
    assert error[..., 8 * 48 :].max() <= 1e-5
    assert added_step(decode_tiled(vae, latent, halves(2)), whole) > 0.5


def test_default_overlap_encodes_closely(vae: WanVae) -> None:
    video = smooth_latent(1, 64, 8 * 80)[:, :3].clamp(-1, 1)
    tiled = encode_tiled(vae, video, Tile(height=48, width=48))
    assert relative_error(tiled, vae.encode(video)) <= 1e-3


def test_tiles_in_bfloat16() -> None:
    vae = random_vae().bfloat16()
    latent = draw(1, 16, 1, 6, 20).bfloat16()
    tiled = decode_tiled(vae, latent, Tile(height=12, width=12, overlap=6))
    assert tiled.dtype == torch.bfloat16
    assert relative_error(tiled.float(), vae.decode(latent).float()) <= 0.1
