"""The VAE's elementwise work in PyTorch: what the fused kernels are held to, against the formulas written out."""

import pytest
import torch
import torch.nn.functional as F

from tests.unit.models.random_vae import draw
from wan_core.kernels import vae as plain


@pytest.mark.parametrize("with_bias", [False, True])
def test_activate_writes_into_a_window(with_bias: bool) -> None:
    x, gamma, bias = draw(2, 6, 3, 4, 5), draw(6, 1, 1, 1, seed=1), draw(6, seed=2) if with_bias else None
    window = torch.full((2, 6, 5, 4, 5), 7.0).contiguous(memory_format=torch.channels_last_3d)
    summed = x if bias is None else x + bias.view(6, 1, 1, 1)
    expected = F.silu(F.normalize(summed, dim=1) * 6**0.5 * gamma)
    plain.activate(x, bias, gamma, window[:, :, 2:])
    torch.testing.assert_close(window[:, :, 2:], expected)
    assert (window[:, :, :2] == 7).all()


@pytest.mark.parametrize("with_bias", [False, True])
def test_planes_hold_the_last_three_frames_side_by_side(with_bias: bool) -> None:
    gamma, bias = draw(6, 1, 1, 1, seed=1), draw(6, seed=2) if with_bias else None
    frames = draw(2, 6, 5, 4, 7)
    active = torch.empty_like(frames)
    plain.activate(frames.clone(), bias, gamma, active)
    planes = torch.zeros(2, 18, 4, 7).contiguous(memory_format=torch.channels_last)
    for index in range(5):
        plain.push(frames[:, :, index : index + 1].clone(), bias, gamma, planes)
    torch.testing.assert_close(planes, torch.cat([active[:, :, index] for index in (2, 3, 4)], dim=1))


def test_add() -> None:
    h, bias, x = draw(1, 4, 2, 3, 3), draw(4, seed=1), draw(1, 4, 2, 3, 3, seed=2)
    torch.testing.assert_close(plain.add(h.clone(), bias, x), h + bias.view(4, 1, 1, 1) + x)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (1, 1), (5, 3)])
def test_merged_upsampling_is_the_doubled_one(height: int, width: int) -> None:
    frames, weight, bias = draw(2, 8, height, width), draw(4, 8, 3, 3, seed=1), draw(4, seed=2)
    expected = plain.enlarge(frames, weight, bias)
    assert expected.shape == (2, 4, 2 * height, 2 * width)
    torch.testing.assert_close(
        plain.enlarge_merged(frames, plain.merged_weight(weight), bias), expected, rtol=1e-5, atol=1e-5
    )
