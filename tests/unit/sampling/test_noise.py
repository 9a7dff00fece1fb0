"""Noise equal to ComfyUI's on the CPU, mixing, empty latents, and the two spaces of a latent."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wan_core.sampling.noise import (
    draw_noise,
    from_handover,
    is_empty,
    mix,
    to_handover,
    to_model_space,
    to_raw_space,
)
from wan_core.specs import LATENT_MEAN, LATENT_STD

SHAPE = (2, 16, 3, 4, 6)


@given(seed=st.integers(0, 2**64 - 1))
def test_cpu_noise_is_comfyuis(seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        # As comfy.sample.prepare_noise draws it: from the global generator, seeded.
        expected = torch.randn(SHAPE, dtype=torch.float32, generator=torch.manual_seed(seed), device="cpu")
    assert torch.equal(draw_noise(SHAPE, seed, "cpu"), expected)


def test_noise_of_one_video_is_the_reference_s_without_a_batch() -> None:
    generator = torch.Generator().manual_seed(7)
    expected = torch.randn(16, 3, 4, 6, dtype=torch.float32, generator=generator)
    assert torch.equal(draw_noise((1, 16, 3, 4, 6), 7, "cpu")[0], expected)


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    draw_noise(SHAPE, 5, "cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_mix_between_latent_and_noise() -> None:
    latent, noise = draw_noise(SHAPE, 1, "cpu"), draw_noise(SHAPE, 2, "cpu")
    assert torch.equal(mix(latent, noise, 1.0), noise)
    assert torch.equal(mix(latent, noise, 0.0), latent)
    torch.testing.assert_close(mix(latent, noise, 0.3), 0.7 * latent + 0.3 * noise)


@pytest.mark.parametrize("sigma", [0.0, 0.3, 0.875])
def test_handover_is_comfyuis_scaling(sigma: float) -> None:
    latent = draw_noise(SHAPE, 3, "cpu")
    handed = to_handover(latent, sigma)
    torch.testing.assert_close(from_handover(handed, sigma), latent)
    # A next sampler that adds no noise: sigma * 0 + (1 - sigma) * latent.
    torch.testing.assert_close(mix(handed, torch.zeros_like(handed), sigma), latent)


def test_empty_means_every_number_is_zero() -> None:
    latent = torch.zeros(SHAPE)
    assert is_empty(latent)
    latent[1, 15, 2, 3, 5] = 1e-30
    assert not is_empty(latent)
    assert not is_empty(torch.full(SHAPE, float("nan")))


def test_model_space_is_normalised_per_channel() -> None:
    raw = draw_noise(SHAPE, 4, "cpu")
    model = to_model_space(raw)
    for channel, (mean, std) in enumerate(zip(LATENT_MEAN, LATENT_STD, strict=True)):
        torch.testing.assert_close(model[:, channel], (raw[:, channel] - mean) / std)


def test_the_two_spaces_are_inverse() -> None:
    latent = draw_noise(SHAPE, 5, "cpu")
    torch.testing.assert_close(to_model_space(to_raw_space(latent)), latent)
    torch.testing.assert_close(to_raw_space(torch.zeros(SHAPE))[0, :, 0, 0, 0], torch.tensor(LATENT_MEAN))
