"""The little world of the miniature: scenes, captions and rendered clips."""

import math
from random import Random

import pytest
import torch

from miniature.captions import describe, describe_fully, held_out_captions
from miniature.clips import GLYPHS, ClipSize, glyph_distance, render
from miniature.scenes import (
    COLOURS,
    DIRECTIONS,
    MOTIONS,
    SHAPES,
    Scene,
    draw_scene,
    is_held_out,
    reach,
    triples,
)

SIZE = ClipSize(9, 48, 48)


def draw_scenes(seed: int, number: int) -> list[Scene]:
    rng = Random(seed)
    return [draw_scene(rng) for _ in range(number)]


def plain_scene(**changes: object) -> Scene:
    words = {
        "shape": "circle", "colour": "red", "count": 1, "size": "medium", "motion": "still", "speed": "", "style": "",
        "background": "black", "pattern": "plain", "camera": "fixed", "row": "horizontal", "place": (0.0, 0.0),
        "angle": 0.0, "phase": 0.0, "turn": 1.0, "tint": 1.0,
    }  # fmt: skip
    return Scene(**(words | changes))


def centroid(frame: torch.Tensor) -> tuple[float, float]:
    """Mean (x, y) of what is red, in half-sides."""
    mass = (frame[0] > 0).float()
    axis = (torch.arange(len(mass)) + 0.5) / len(mass) * 2 - 1
    return float((mass.sum(0) * axis).sum() / mass.sum()), float((mass.sum(1) * axis).sum() / mass.sum())


def test_a_seed_gives_the_same_scenes_for_ever():
    first, second, other = (draw_scenes(seed, 20) for seed in (3, 3, 4))
    assert first == second != other


def test_training_never_shows_a_held_out_triple_and_evaluation_shows_nothing_else():
    seen = {(s.colour, s.shape, s.motion) for s in draw_scenes(0, 3000)}
    held = {(s.colour, s.shape, s.motion) for s, _ in held_out_captions(200, 0)}
    assert not any(is_held_out(*triple) for triple in seen)
    assert all(is_held_out(*triple) for triple in held)
    assert len(held) > 15


def test_every_word_of_a_held_out_triple_occurs_in_training():
    training = triples(False)
    for position, words in enumerate((COLOURS, SHAPES, MOTIONS)):
        assert {triple[position] for triple in training} == set(words)
    pairs = {(colour, shape) for colour, shape, _ in training}
    assert {(colour, shape) for colour, shape, _ in triples(True)} <= pairs


def test_held_out_captions_name_what_the_judge_reads():
    for scene, caption in held_out_captions(60, 1, motions=MOTIONS):
        assert scene.colour in caption
        assert scene.shape in caption
        number = {1: ("a ", "an ", "one ", "single "), 2: ("two ", "pair "), 3: ("three ",)}[scene.count]
        assert any(word in caption for word in number)
    assert all(scene.motion in DIRECTIONS for scene, _ in held_out_captions(60, 1))


def test_captions_are_reproducible_and_of_many_wordings():
    scene = draw_scene(Random(0))
    wordings = {describe(scene, Random(seed)) for seed in range(40)}
    assert len(wordings) > 10
    assert describe_fully(scene, Random(5)) == describe_fully(scene, Random(5))


def test_objects_stay_inside_the_picture():
    for scene in draw_scenes(1, 300):
        if scene.camera == "fixed":
            x, y = reach(scene)
            assert abs(scene.place[0]) + x <= max(x, 0.95) + 1e-9
            assert abs(scene.place[1]) + y <= max(y, 0.95) + 1e-9
            assert max(x, y) < 1.1


def test_a_clip_has_the_shape_range_and_determinism_that_are_promised():
    scenes = draw_scenes(2, 4)
    clips = render(scenes, SIZE)
    assert clips.shape == (4, 3, 9, 48, 48)
    assert -1 <= clips.min() and clips.max() <= 1
    assert torch.equal(clips, render(scenes, SIZE))
    assert torch.allclose(clips[2:3], render(scenes[2:3], SIZE), atol=1e-6)


def test_colour_fills_the_object_and_the_background_the_rest():
    clip = render([plain_scene()], SIZE)[0]
    assert clip[:, 4, 24, 24].tolist() == pytest.approx([2 * c - 1 for c in COLOURS["red"]], abs=1e-5)
    assert clip[:, 4, 1, 1].max() < -0.85


@pytest.mark.parametrize(("motion", "way"), DIRECTIONS.items())
def test_a_direction_moves_the_centroid_that_way(motion: str, way: tuple[float, float]):
    clip = render([plain_scene(motion=motion)], SIZE)[0]
    start, end = centroid(clip[:, 0]), centroid(clip[:, -1])
    for axis in (0, 1):
        assert end[axis] - start[axis] == pytest.approx(0.8 * way[axis], abs=0.05)


def test_growing_and_shrinking_change_the_area_and_bouncing_and_circling_return():
    for motion, grows in (("growing", True), ("shrinking", False)):
        clip = render([plain_scene(motion=motion)], SIZE)[0]
        mass = (clip[0] > 0).sum(dim=(1, 2))
        assert (mass[-1] > 3 * mass[0]) if grows else (mass[0] > 3 * mass[-1])
    for motion in ("bouncing", "circling"):
        clip = render([plain_scene(motion=motion, phase=0.3)], SIZE)[0]
        path = torch.tensor([centroid(clip[:, time]) for time in range(9)])
        assert (path[0] - path[-1]).abs().max() < 0.02
        assert (path.max(0).values - path.min(0).values).max() > 0.4


def test_several_objects_are_apart():
    for count in (2, 3):
        clip = render([plain_scene(count=count)], ClipSize(1, 96, 96))[0]
        row = clip[0, 0, 48] > 0
        starts = int((row[1:] & ~row[:-1]).sum())
        assert starts == count


@pytest.mark.parametrize("shape", SHAPES)
def test_distances_are_signed_and_of_unit_slope_near_the_edge(shape: str):
    grid = torch.linspace(-2, 2, 400)
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    distance = glyph_distance(torch.tensor(GLYPHS[shape]).view(7, 1, 1), x, y)
    assert distance[0].min() > 0
    assert distance.min() < -0.1
    # Where the distance crosses zero it changes by about one per unit of length: that is what antialiasing divides by.
    slope = torch.gradient(distance, spacing=(float(grid[1] - grid[0]),) * 2)
    steepness = torch.hypot(*slope)[distance.abs() < 0.02]
    assert 0.5 < steepness.median() < 1.2


def test_edges_are_antialiased_by_one_pixel():
    clip = render([plain_scene()], ClipSize(1, 128, 128))[0, 0, 0]
    low, high = clip.min(), clip.max()
    between = ((clip > low + 0.1) & (clip < high - 0.1)).sum()
    circumference = 2 * math.pi * 0.30 * 64
    assert 0.3 * circumference < between < 2 * circumference


def test_the_camera_moves_everything():
    still = render([plain_scene(pattern="striped")], SIZE)[0]
    panned = render([plain_scene(pattern="striped", camera="pan left")], SIZE)[0]
    assert torch.allclose(still[:, 0], still[:, -1])
    assert not torch.allclose(panned[:, 0, :4], panned[:, -1, :4], atol=0.05)
    # To the left goes the camera, so to the right goes the picture.
    assert centroid(panned[:, -1])[0] > centroid(panned[:, 0])[0] + 0.2
