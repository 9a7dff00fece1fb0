"""The transformer's layers one by one: which dtype they compute and answer in, and their definitions."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wan_core.models.layers import LayerNorm, Linear, PatchEmbedding, RmsNorm, timestep_features


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_norms_compute_and_answer_in_float32(weight_dtype: torch.dtype) -> None:
    x = draw(2, 5, 64).bfloat16()
    rms, layer = RmsNorm(64, eps=1e-6), LayerNorm(64, eps=1e-6)
    for number, parameter in enumerate((rms.weight, layer.weight, layer.bias)):
        parameter.data = draw(64, seed=number).to(weight_dtype)
    wide = x.double()
    centred = wide - wide.mean(-1, keepdim=True)
    expected_rms = wide * (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * rms.weight
    expected_layer = centred * (centred.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * layer.weight + layer.bias
    for got, expected in ((rms(x), expected_rms), (layer(x), expected_layer)):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16])
def test_linear_computes_in_the_dtype_of_its_weight(weight_dtype: torch.dtype, input_dtype: torch.dtype) -> None:
    layer = Linear(8, 3).to(weight_dtype)
    x = draw(2, 8).to(input_dtype)
    out = layer(x)
    assert out.dtype == weight_dtype
    assert torch.equal(out, F.linear(x.to(weight_dtype), layer.weight, layer.bias))


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 2, 4)])
def test_patch_embedding_is_the_convolution_of_its_parameters(patch: tuple[int, int, int]) -> None:
    layer = PatchEmbedding(5, 7, patch)
    latent = draw(2, 5, 4, 6, 8)
    convolved = F.conv3d(latent.double(), layer.weight.double(), layer.bias.double(), stride=patch)
    expected = convolved.flatten(2).transpose(1, 2)
    torch.testing.assert_close(layer(latent).double(), expected, rtol=1e-5, atol=1e-6)


def test_timestep_features_are_cosines_then_sines() -> None:
    features = timestep_features(torch.tensor([937.5, 3.0]), 256)
    assert features.dtype == torch.float32
    assert features[0, 0] == pytest.approx(math.cos(937.5), abs=1e-7)
    assert features[0, 128 + 5] == pytest.approx(math.sin(937.5 * 10000 ** (-5 / 128)), abs=1e-7)
    assert features[1, 127] == pytest.approx(math.cos(3 * 10000 ** (-127 / 128)), abs=1e-7)
