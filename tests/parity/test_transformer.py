"""The transformer against diffusers' `WanTransformer3DModel`: random weights, float32, relative error <= 1e-5."""

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from tests.parity.diffusers_models import make_transformer
from tests.parity.diffusers_names import to_diffusers
from wan_core.attention.backends import BACKENDS
from wan_core.models.transformer import WanTransformer
from wan_core.specs import TransformerSpec

TOLERANCE = 1e-5
GRID = (3, 10, 14)


def make_spec(num_heads: int, in_dim: int) -> TransformerSpec:
    return TransformerSpec(
        dim=128 * num_heads, ffn_dim=448, num_heads=num_heads, num_layers=3, in_dim=in_dim, out_dim=16, text_dim=96
    )


def make_ours(spec: TransformerSpec) -> WanTransformer:
    attend = next(backend for backend in BACKENDS if backend.name == "sdpa").load()
    return WanTransformer(spec, attend=attend, cross_attend=attend).eval().requires_grad_(False)


def draw_weights(names: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Nothing at its neutral value: norms away from 1, biases and modulation away from 0, gates of order one."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, like in names.items():
        noise = torch.randn(like.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            weights[name] = 1 + 0.3 * noise
        elif "modulation" in name:
            weights[name] = 0.5 * noise
        elif name.endswith("bias"):
            weights[name] = 0.2 * noise
        else:
            weights[name] = noise * like[0].numel() ** -0.5
    return weights


@pytest.fixture(scope="module", params=[(2, 16), (3, 16), (2, 36)], ids=["dim256", "dim384", "i2v"])
def pair(request: pytest.FixtureRequest) -> tuple[WanTransformer, WanTransformer3DModel]:
    """Ours and theirs with the same random weights."""
    spec = make_spec(*request.param)
    ours, theirs = make_ours(spec), make_transformer(spec)
    weights = draw_weights(ours.state_dict(), seed=spec.dim + spec.in_dim)
    ours.load_state_dict(weights)
    theirs.load_state_dict({to_diffusers(name): tensor for name, tensor in weights.items()})
    return ours, theirs


def draw_inputs(spec: TransformerSpec, num_tokens_text: int = 23) -> tuple[Tensor, Tensor, Tensor]:
    """Latent, timestep and text of a batch of two: different samples, different timesteps."""
    generator = torch.Generator().manual_seed(7)
    latent = torch.randn(2, spec.in_dim, *GRID, generator=generator)
    context = torch.randn(2, num_tokens_text, spec.text_dim, generator=generator)
    return latent, torch.tensor([875.0, 312.0]), context


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def run_theirs(model: WanTransformer3DModel, latent: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
    padded = torch.nn.functional.pad(context, (0, 0, 0, 512 - context.shape[1]))
    return model(latent, timestep, padded, return_dict=False)[0]


def test_names_cover_both_models_exactly(pair: tuple[WanTransformer, WanTransformer3DModel]) -> None:
    ours, theirs = pair
    assert {to_diffusers(name) for name in ours.state_dict()} == set(theirs.state_dict())


def test_velocity_equals_diffusers(pair: tuple[WanTransformer, WanTransformer3DModel]) -> None:
    ours, theirs = pair
    latent, timestep, context = draw_inputs(ours.spec)
    velocity = ours(latent, timestep, ours.prepare_text(context))
    assert relative_error(velocity, run_theirs(theirs, latent, timestep, context)) <= TOLERANCE


def test_velocity_per_token_equals_diffusers(pair: tuple[WanTransformer, WanTransformer3DModel]) -> None:
    """As for image conditioning of TI2V: the first frame is clean (timestep 0), the rest is not."""
    ours, theirs = pair
    latent, timestep, context = draw_inputs(ours.spec)
    num_tokens = ours.spec.num_tokens(GRID)
    per_token = timestep[:, None].repeat(1, num_tokens)
    per_token[:, : num_tokens // GRID[0]] = 0
    velocity = ours(latent, per_token, ours.prepare_text(context))
    assert relative_error(velocity, run_theirs(theirs, latent, per_token, context)) <= TOLERANCE


def test_full_length_text_equals_diffusers(pair: tuple[WanTransformer, WanTransformer3DModel]) -> None:
    ours, theirs = pair
    latent, timestep, context = draw_inputs(ours.spec, num_tokens_text=512)
    velocity = ours(latent, timestep, ours.prepare_text(context))
    assert relative_error(velocity, run_theirs(theirs, latent, timestep, context)) <= TOLERANCE
