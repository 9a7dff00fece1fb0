"""The judge reads clips whose content is known."""

from random import Random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from miniature.captions import held_out_captions
from miniature.clips import ClipSize, render
from miniature.judge import Reading, read_clip
from miniature.scenes import DIRECTIONS, MOTIONS, Scene, draw_scene

SIZE = ClipSize(17, 96, 96)
ASPECTS = ("colour", "shape", "count", "motion")


def shares(scenes: list[Scene], clips: torch.Tensor) -> dict[str, float]:
    agreements = [read_clip(clip.numpy()).agrees_with(scene) for clip, scene in zip(clips, scenes, strict=True)]
    return {aspect: float(np.mean([agreement[aspect] for agreement in agreements])) for aspect in ASPECTS}


@pytest.fixture(scope="module")
def directed() -> tuple[list[Scene], torch.Tensor]:
    scenes = [scene for scene, _ in held_out_captions(60, 7)]
    return scenes, torch.cat([render(scenes[i : i + 10], SIZE) for i in range(0, 60, 10)])


def test_rendered_clips_are_read_almost_always(directed: tuple[list[Scene], torch.Tensor]):
    # 97% of 200 is what an evaluation asks of the judge; of 60 that is at most one mistake.
    for aspect, share in shares(*directed).items():
        assert share >= 59 / 60, aspect


def test_every_kind_of_motion_is_told_apart():
    rng = Random(11)
    scenes = [draw_scene(rng, motions=(motion,)) for motion in MOTIONS if motion not in DIRECTIONS for _ in range(5)]
    scenes = [scene for scene in scenes if scene.camera == "fixed"]
    clips = torch.cat([render([scene], ClipSize(17, 64, 64)) for scene in scenes])
    assert shares(scenes, clips)["motion"] >= 1 - 1.5 / len(scenes)


def test_what_an_autoencoder_does_to_a_clip_does_not_mislead_it(directed: tuple[list[Scene], torch.Tensor]):
    scenes, clips = directed[0][:24], directed[1][:24]
    generator = torch.Generator().manual_seed(0)
    noise = F.interpolate(torch.randn(24, 3, 5, 24, 24, generator=generator), size=clips.shape[2:], mode="trilinear")
    worn = F.avg_pool3d(clips, (1, 3, 3), stride=1, padding=(0, 1, 1), count_include_pad=False) + 0.06 * noise
    read = shares(scenes, worn)
    assert read["colour"] >= 23 / 24
    assert min(read.values()) >= 0.85


def test_it_says_nothing_about_an_empty_picture():
    assert read_clip(np.zeros((3, 9, 64, 64), np.float32)) == Reading()


def test_it_does_not_agree_with_another_scene(directed: tuple[list[Scene], torch.Tensor]):
    scenes, clips = directed
    others = scenes[1:] + scenes[:1]
    read = shares(others[:20], clips[:20])
    assert read["colour"] < 0.5 and read["shape"] < 0.5 and read["motion"] < 0.7


def test_half_precision_is_read_alike(directed: tuple[list[Scene], torch.Tensor]):
    clip = directed[1][0].numpy()
    assert read_clip(clip.astype(np.float16)) == read_clip(clip)
