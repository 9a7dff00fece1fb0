"""A VAE with random weights whose every parameter matters: norms and biases are drawn as well."""

import torch
import torch.nn.functional as F
from torch import Tensor

from wan_core.models.vae21 import WanVae
from wan_core.specs import VaeSpec

SMALL = VaeSpec(dim=8)


def random_vae(spec: VaeSpec = SMALL, seed: int = 0) -> WanVae:
    generator = torch.Generator().manual_seed(seed)
    vae = WanVae(spec)
    for name, parameter in vae.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        if name.endswith("gamma"):
            drawn = 1 + 0.3 * drawn
        elif name.endswith("bias"):
            drawn = 0.1 * drawn
        else:
            drawn = 0.7 * drawn / parameter[0].numel() ** 0.5
        parameter.data.copy_(drawn)
    return vae.requires_grad_(False)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def smooth_latent(frames: int, height: int, width: int, seed: int = 0) -> Tensor:
    """A random latent that changes over about eight rows and columns, as those of real videos do."""
    coarse = draw(1, 16, frames, 2 + height // 8, 2 + width // 8, seed=seed)
    return F.interpolate(coarse, size=(frames, height, width), mode="trilinear", align_corners=True)
