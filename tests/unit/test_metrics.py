"""Distances of videos and latents: known answers, an independent SSIM, and one sentence for what cannot be compared."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from wan_core.errors import InputError
from wan_core.metrics import Comparison, compare_latents, compare_videos, table


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def gray(levels: list[float], height: int = 16, width: int = 16) -> Tensor:
    """A video whose frames are each of one level."""
    return torch.tensor(levels, dtype=torch.float64)[:, None, None, None].expand(-1, height, width, 3)


def skimage_ssim(first: Tensor, second: Tensor) -> float:
    values = [
        structural_similarity(
            a.double().numpy(), b.double().numpy(), data_range=1.0, channel_axis=-1, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(first, second, strict=True)
    ]  # fmt: skip
    return float(np.mean(values))


def test_a_constant_offset():
    found = compare_videos(gray([0.25] * 4), gray([0.35] * 4))
    assert found.mse == pytest.approx(0.01, rel=1e-12)
    assert found.psnr == pytest.approx(20.0, rel=1e-12)
    assert found.greatest_error == pytest.approx(0.1, rel=1e-12)
    assert found.relative_error == pytest.approx(0.4, rel=1e-12)
    assert found.cosine == pytest.approx(1.0, rel=1e-12)
    assert found.motion_mse == pytest.approx(0.0, abs=1e-30)
    assert found.flicker == pytest.approx((0.0, 0.0), abs=1e-15)
    # Flat frames leave the luminance term of SSIM alone.
    expected = (2 * 0.25 * 0.35 + 1e-4) / (0.25**2 + 0.35**2 + 1e-4)
    assert found.ssim == pytest.approx(expected, abs=1e-4)


def test_levels_are_compared_in_0_to_1():
    dark, light = (torch.full((2, 16, 16, 3), level, dtype=torch.uint8) for level in (0, 51))
    assert compare_videos(dark, light).mse == pytest.approx(0.04, rel=1e-12)
    assert compare_videos(dark, gray([0.2, 0.2])).mse == pytest.approx(0.04, rel=1e-12)


def test_psnr_is_that_of_the_whole_video():
    found = compare_videos(gray([0.0, 0.0]), gray([0.0, 0.5]))
    assert found.psnr == pytest.approx(10 * math.log10(1 / 0.125))
    assert [frame.mse for frame in found.frames] == [0.0, 0.25]
    assert "lowest 6.02 dB at frame 1" in found.to_text()


@pytest.mark.parametrize("strength", [0.01, 0.1, 1.0])
def test_ssim_is_scikit_images(strength):
    # Smooth pictures under noise: pure noise against noise is near 0 whatever the window.
    y, x = torch.meshgrid(torch.arange(40), torch.arange(52), indexing="ij")
    first = torch.stack([(torch.sin((x + shift) / 6) * torch.cos(y / 5) + 1) / 2 for shift in range(9)])
    first = first.reshape(3, 3, 40, 52).movedim(1, -1)
    second = (first + strength * (noise(3, 40, 52, 3) - 0.5)).clamp(0, 1)
    found = compare_videos(first, second)
    assert found.ssim == pytest.approx(skimage_ssim(first, second), abs=2e-6)
    each = [skimage_ssim(a[None], b[None]) for a, b in zip(first, second, strict=True)]
    assert [frame.ssim for frame in found.frames] == pytest.approx(each, abs=2e-6)


def test_flicker_of_a_video_that_blinks():
    still, blinking, fading = gray([0.5] * 5), gray([0.5, 0.6, 0.5, 0.6, 0.5]), gray([0.1, 0.2, 0.3, 0.4, 0.5])
    found = compare_videos(still, blinking)
    # x[t+1] - 2 x[t] + x[t-1] is 0.2 in turn up and down; each frame difference is wrong by 0.1.
    assert found.flicker == pytest.approx((0.0, 0.2), abs=1e-12)
    assert found.motion_mse == pytest.approx(0.01, rel=1e-9)
    assert compare_videos(still, fading).flicker == pytest.approx((0.0, 0.0), abs=1e-12)


def test_an_error_anew_in_every_frame_moves_twice_as_much_as_it_is():
    first = noise(40, 16, 16, 3).double()
    second = first + 0.1 * torch.randn(first.shape, generator=torch.Generator().manual_seed(1), dtype=first.dtype)
    found = compare_videos(first, second)
    assert found.motion_mse / found.mse == pytest.approx(2.0, rel=0.02)


def test_identical_videos_need_no_infinity_in_json():
    video = (noise(3, 16, 16, 3) * 255).to(torch.uint8)
    found = compare_videos(video, video.clone())
    assert (found.identical, found.psnr, found.ssim, found.motion_mse) == (True, math.inf, 1.0, 0.0)
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (data["identical"], data["psnr"], data["ssim"]) == (True, None, 1.0)
    assert "identical       yes" in found.to_text()


def test_black_videos_are_identical():
    found = compare_videos(gray([0.0] * 3), gray([0.0] * 3))
    assert (found.ssim, found.relative_error, found.cosine) == (1.0, 0.0, None)
    assert found.why_missing("cosine") == "a video that is zero everywhere has no angle"


def test_latents():
    first = torch.randn(2, 16, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    second = first.clone()
    second[:, :, 1] *= 1.1
    found = compare_latents(first, second)
    norms = first.double().square().sum((0, 1, 3, 4))
    assert found.relative_error == pytest.approx(0.1 * math.sqrt(norms[1] / norms.sum()), rel=1e-6)
    assert [frame.relative_error for frame in found.frames] == pytest.approx([0.0, 0.1, 0.0], abs=1e-7)
    flat = torch.nn.functional.cosine_similarity(first.double().flatten(), second.double().flatten(), dim=0)
    assert found.cosine == pytest.approx(flat.item(), rel=1e-12)
    assert (found.ssim, found.psnr) == (None, None)
    assert "highest 0.1 at latent frame 1" in found.to_text()
    assert set(found.to_dict()["missing"]) == {"psnr", "ssim"}


def test_latents_of_narrow_dtypes_are_compared_as_they_are():
    first = torch.randn(1, 16, 2, 4, 4)
    found = compare_latents(first, first.bfloat16())
    assert 5e-4 < found.relative_error < 4e-3
    assert compare_latents(first.bfloat16(), first.bfloat16().float()).identical


@pytest.mark.parametrize(("num_frames", "missing"), [(1, {"motion_mse", "flicker"}), (2, {"flicker"}), (3, set())])
def test_few_frames_have_no_flicker_and_one_does_not_move(num_frames, missing):
    found = compare_videos(noise(num_frames, 16, 16, 3), noise(num_frames, 16, 16, 3, seed=1))
    assert {name for name, _ in found.missing} == missing
    assert ("flicker         none: it takes three frames" in found.to_text()) is ("flicker" in missing)


def test_without_kornia_all_but_ssim_comes(monkeypatch):
    for module in [name for name in sys.modules if name.partition(".")[0] == "kornia"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "kornia", None)
    found = compare_videos(noise(3, 16, 16, 3), noise(3, 16, 16, 3, seed=1))
    assert (found.ssim, found.frames[0].ssim) == (None, None)
    assert found.psnr == pytest.approx(10 * math.log10(6), abs=0.3)
    assert "SSIM            none: it needs the package 'kornia', which does not load here (" in found.to_text()


def test_frames_below_the_window_have_no_ssim():
    found = compare_videos(noise(3, 8, 32, 3), noise(3, 8, 32, 3, seed=1))
    assert found.why_missing("ssim") == "frames of 32x8 are smaller than its window of 11x11"


def test_progress_is_told_and_may_stop():
    seen = []
    compare_videos(noise(3, 16, 16, 3), noise(3, 16, 16, 3), on_frame=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_table_has_a_column_for_each():
    first = noise(3, 16, 16, 3)
    lines = table([compare_videos(first, first), compare_videos(first, 1 - first)], ("one", "two")).splitlines()
    assert lines[0].split() == ["one", "two"]
    assert lines[1].split() == ["identical", "yes", "no"]
    assert len({line.index(word) for line, word in zip(lines, ("two", "no"), strict=False)}) == 1


@pytest.mark.parametrize(
    ("first", "second", "sentence"),
    [
        (noise(3, 16, 16, 3), noise(4, 16, 16, 3), r"shape \(3, 16, 16, 3\) and the second \(4, 16, 16, 3\)"),
        (noise(3, 16, 16, 4), noise(3, 16, 16, 4), r"both videos have shape \(3, 16, 16, 4\), expected \(frames"),
        (noise(16, 16, 3), noise(16, 16, 3), r"both videos have shape \(16, 16, 3\)"),
        (noise(0, 16, 16, 3), noise(0, 16, 16, 3), "none of them 0"),
        (noise(1, 16, 16, 3), torch.zeros(1, 16, 16, 3, dtype=torch.int64), "the second video is int64"),
        (gray([0.0, math.nan]), gray([0.0, 0.0]), "frame 1 of the first video holds NaN or infinity"),
        (gray([0.0, 0.0]), gray([math.inf, 0.0]), "frame 0 of the second video holds NaN or infinity"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(first, second, sentence):
    with pytest.raises(InputError, match=sentence) as refused:
        compare_videos(first, second)
    assert "\n" not in str(refused.value)


def test_latents_of_images_and_levels_are_refused():
    with pytest.raises(InputError, match=r"both latents have shape \(1, 4, 8, 8\)"):
        compare_latents(noise(1, 4, 8, 8), noise(1, 4, 8, 8))
    with pytest.raises(InputError, match="the first latent is uint8, expected floating point"):
        compare_latents(torch.zeros(1, 16, 1, 2, 2, dtype=torch.uint8), noise(1, 16, 1, 2, 2))


def test_a_comparison_cannot_be_changed():
    found = compare_latents(noise(1, 16, 1, 2, 2), noise(1, 16, 1, 2, 2))
    assert isinstance(found, Comparison)
    with pytest.raises(AttributeError):
        found.mse = 1.0
