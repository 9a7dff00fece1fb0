"""The shipped model makes the pictures it made when it was shipped, each step by the expert that the schedule names."""

import pytest
import torch
from torch import Tensor

from tests.trained.pictures import MODEL, PICTURES, Picture, make
from wan_core.frames import fractions
from wan_core.metrics import compare_latents, compare_videos
from wan_core.sampling.experts import expert_for

# Other processors and libraries sum in another order; two kernels on one machine differ by about 1e-6.
MOST_RELATIVE_ERROR = 1e-4
LEAST_SSIM = 0.9999
# Mean squared error of frames in [0, 1]: 70 dB.
MOST_MSE = 1e-7


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


def test_same_video():
    """The same once more, decoded."""
    picture = PICTURES[1]
    pipeline, result = make(picture, "auto")
    plan = pipeline.plan(picture.request, picture.size)

    def frames(latent: Tensor) -> Tensor:
        return fractions(torch.cat(list(pipeline.decode_chunks(plan, latent)), dim=2))[0]

    found = compare_videos(frames(picture.stored()), frames(result.latent))
    assert found.mse <= MOST_MSE and found.ssim >= LEAST_SSIM, found


@pytest.mark.parametrize("boundary", [0.0, 1.0], ids=["high alone", "low alone"])
def test_one_expert_alone_makes_another_picture(boundary: float) -> None:
    """So a switch that never comes, or comes at once, cannot pass for the right one."""
    picture = PICTURES[1]
    _, result = make(picture, "auto", boundary=boundary)
    assert len({step.expert for step in result.report.steps}) == 1
    assert compare_latents(picture.stored(), result.latent).relative_error > 0.1
