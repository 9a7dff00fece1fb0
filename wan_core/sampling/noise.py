"""Noise, noise levels and the two spaces of a latent, for (B, 16, T, H, W).

Raw space is what the VAE encodes to and what a host passes around; model space is (raw - mean) / std per channel, the
Wan 2.1 statistics, and what the transformers and solvers see. Noise is added in model space.

A latent of zeros means "nothing yet". It must not be converted: ComfyUI leaves it at zero in model space, where zero is
the mean of all latents, while a converted zero would be a flat color.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from ..specs import LATENT_MEAN, LATENT_STD


def draw_noise(shape: Sequence[int], seed: int, device: torch.device | str) -> Tensor:
    """Standard normal noise, float32, drawn on `device` by a generator of its own; seed is 0 to 2**64 - 1.

    On "cpu" these are the numbers of ComfyUI's `prepare_noise`, on another device those of the reference running there.
    """
    generator = torch.Generator(device=device).manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator, device=device, dtype=torch.float32)


def mix(latent: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """(1 - sigma) * latent + sigma * noise; exactly the noise at sigma 1. Both in model space."""
    return torch.lerp(latent, noise, sigma)


def to_handover(latent: Tensor, sigma: float) -> Tensor:
    """A latent at noise level sigma < 1 as ComfyUI hands it to a next sampler: divided by 1 - sigma, in model space."""
    return latent / (1.0 - sigma)


def from_handover(latent: Tensor, sigma: float) -> Tensor:
    """The latent at noise level sigma that `to_handover` was given."""
    return latent * (1.0 - sigma)


def is_empty(latent: Tensor) -> bool:
    """Whether every number is zero. Waits for the device; not for the inside of a loop."""
    return not bool(latent.any())


def to_model_space(raw: Tensor) -> Tensor:
    """(B, 16, T, H, W) as the VAE encodes it -> as the transformers see it."""
    return (raw - _per_channel(LATENT_MEAN, raw)) / _per_channel(LATENT_STD, raw)


def to_raw_space(latent: Tensor) -> Tensor:
    """(B, 16, T, H, W) as the transformers see it -> as the VAE decodes it."""
    return latent * _per_channel(LATENT_STD, latent) + _per_channel(LATENT_MEAN, latent)


def _per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    return rearrange(torch.tensor(values, dtype=like.dtype, device=like.device), "C -> C 1 1 1")
