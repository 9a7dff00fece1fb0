"""The shipped model makes the pictures it made when it was shipped, each step by the expert that the schedule names,
and they show what their prompts say."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from miniature.judge import read_clip
from miniature.scenes import is_held_out
from tests.trained.pictures import DEMO, MODEL, SHORT, Picture, make
from wan_core.checkpoint.experts import ExpertPair
from wan_core.frames import fractions
from wan_core.metrics import compare_latents, compare_videos
from wan_core.pipeline import WanPipeline
from wan_core.sample import SampleResult
from wan_core.sampling.experts import expert_for

# Other processors and libraries sum in another order; two kernels on one machine differ by about 1e-6.
MOST_RELATIVE_ERROR = 1e-4
LEAST_SSIM, LEAST_PSNR = 0.9999, 70.0
# What a step by the wrong expert must change at least, a hundred times what another machine may.
LEAST_OF_A_WRONG_STEP = 1e-2


def test_the_shipped_files_are_small_and_complete():
    files = list(MODEL.rglob("*.safetensors"))
    assert len(files) == 4, files
    assert max(file.stat().st_size for file in files) <= 16_000_000
    assert sum(file.stat().st_size for file in files) <= 48_000_000


def decoded(pipeline: WanPipeline, picture: Picture, latent: Tensor) -> Tensor:
    """Video (1, 3, T, H, W) in [-1, 1]."""
    return torch.cat(list(pipeline.decode_chunks(pipeline.plan(picture.request, picture.size), latent)), dim=2)


def same_latent(picture: Picture, result: SampleResult) -> None:
    found = compare_latents(picture.stored(), result.latent)
    assert found.relative_error <= MOST_RELATIVE_ERROR, found
    for step in result.report.steps:
        assert step.expert == expert_for(step.timestep, 0.875).value
    assert {step.expert for step in result.report.steps} == {"high", "low"}


def test_the_demo_has_what_training_never_showed() -> None:
    held_out = [is_held_out(each.says.colour, each.says.shape, each.says.motion) for each in DEMO]
    assert held_out == [True, False, True]


@pytest.mark.parametrize("picture", DEMO, ids=lambda picture: picture.prompt)
def test_the_demo_shows_what_its_prompts_say(picture: Picture) -> None:
    pipeline, result = make(picture, "auto")
    same_latent(picture, result)
    assert read_clip(decoded(pipeline, picture, result.latent)[0].numpy()) == picture.says


def test_same_video() -> None:
    pipeline, result = make(SHORT, "auto")
    same_latent(SHORT, result)
    videos = (fractions(decoded(pipeline, SHORT, latent))[0] for latent in (SHORT.stored(), result.latent))
    found = compare_videos(*videos)
    assert found.psnr >= LEAST_PSNR and found.ssim >= LEAST_SSIM, found


def swapped(pair: ExpertPair) -> ExpertPair:
    return replace(pair, high=pair.low, low=pair.high)


# The recipe's steps by the high-noise expert end at timestep 888, those by the other begin at 850.
WRONG = {
    "high alone": {"boundary": 0.0},
    "low alone": {"boundary": 1.0},
    "one step early": {"boundary": 0.9},
    "one step late": {"boundary": 0.84},
    "swapped": {"experts": swapped},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_expert_shows(wrong: str) -> None:
    """A switch that never comes, comes at once or a step off, and weights in each other's place make another latent;
    without one of the two experts it no longer shows what the prompt says either."""
    pipeline, result = make(SHORT, "auto", **WRONG[wrong])
    assert compare_latents(SHORT.stored(), result.latent).relative_error > LEAST_OF_A_WRONG_STEP
    if "step" not in wrong:
        assert read_clip(decoded(pipeline, SHORT, result.latent)[0].numpy()) != SHORT.says
