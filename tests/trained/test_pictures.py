"""The shipped model makes the pictures it made when it was shipped, each step by the expert that the schedule names,
and they show what their prompts say."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from miniature.judge import read_clip
from tests.trained.pictures import MODEL, PICTURES, Picture, make
from wan_core.checkpoint.experts import ExpertPair
from wan_core.checkpoint.find import find_model
from wan_core.frames import fractions
from wan_core.metrics import compare_latents, compare_videos
from wan_core.pipeline import WanPipeline
from wan_core.profiles import preset
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


@pytest.mark.parametrize("profile", ["reference", "auto"])
@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_same_latent(picture: Picture, profile: str) -> None:
    _, result = make(picture, profile)
    found = compare_latents(picture.stored(), result.latent)
    assert found.relative_error <= MOST_RELATIVE_ERROR, found
    for step in result.report.steps:
        assert step.expert == expert_for(step.timestep, 0.875).value
    assert {step.expert for step in result.report.steps} == {"high", "low"}


def decoded(pipeline: WanPipeline, picture: Picture, latent: Tensor) -> Tensor:
    """Video (1, 3, T, H, W) in [-1, 1]."""
    return torch.cat(list(pipeline.decode_chunks(pipeline.plan(picture.request, picture.size), latent)), dim=2)


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_what_is_stored_shows_what_its_prompt_says(picture: Picture) -> None:
    pipeline = WanPipeline(find_model(MODEL), preset("auto"))
    assert read_clip(decoded(pipeline, picture, picture.stored())[0].numpy()) == picture.says


def test_same_video():
    """The same once more, decoded."""
    picture = PICTURES[1]
    pipeline, result = make(picture, "auto")
    found = compare_videos(
        *(fractions(decoded(pipeline, picture, each))[0] for each in (picture.stored(), result.latent))
    )
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
    picture = PICTURES[1]
    pipeline, result = make(picture, "auto", **WRONG[wrong])
    assert compare_latents(picture.stored(), result.latent).relative_error > LEAST_OF_A_WRONG_STEP
    if "step" not in wrong:
        assert read_clip(decoded(pipeline, picture, result.latent)[0].numpy()) != picture.says
