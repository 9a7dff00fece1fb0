"""The VAE's Triton kernels against their definition in PyTorch, on a GPU, or anywhere in Triton's interpreter.

Bounds are relative to what the definition itself loses in the same dtype against float64. Without a card:
`TRITON_INTERPRET=1 pytest tests/kernels/test_vae.py`, where Triton is installed; in float32 alone, since the
interpreter cuts bfloat16 where hardware rounds it.
"""

import os
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.unit.models.random_vae import draw, random_vae
from wan_core.kernels import vae as plain
from wan_core.kernels.vae import VaeKernels
from wan_core.models.vae21 import WanVae
from wan_core.specs import VaeSpec

pytest.importorskip("triton")
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not IS_INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA card, or TRITON_INTERPRET=1", allow_module_level=True)

from wan_core.kernels.triton_vae import TRITON  # noqa: E402

DEVICE = "cpu" if IS_INTERPRETED else "cuda"
DTYPES = [torch.float32] if IS_INTERPRETED else [torch.float32, torch.bfloat16, torch.float16]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
# Batches and channels of the released and of the miniature model; rows that fill no block.
SIZES = [(1, 96, 2, 37, 53), (1, 384, 1, 9, 16), (2, 192, 3, 5, 7), (2, 12, 2, 6, 10)]
each_size = pytest.mark.parametrize("size", SIZES, ids=str)


def drawn(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    x = draw(*shape, seed=seed).to(DEVICE, dtype)
    return x.contiguous(memory_format=torch.channels_last_3d) if x.ndim == 5 else x


def error(got: Tensor, exact: Tensor) -> float:
    return ((got.double() - exact).norm() / exact.norm()).item()


@each_dtype
@each_size
@pytest.mark.parametrize("with_bias", [False, True])
def test_activate(size: tuple[int, ...], with_bias: bool, dtype: torch.dtype) -> None:
    batch, channels, frames, height, width = size
    x, gamma = drawn(*size, dtype=dtype), drawn(channels, 1, 1, 1, dtype=dtype, seed=1)
    bias = drawn(channels, dtype=dtype, seed=2) if with_bias else None
    window = torch.full((batch, channels, frames + 2, height, width), 7.0, dtype=dtype, device=DEVICE)
    windows = [window.contiguous(memory_format=torch.channels_last_3d).clone() for _ in range(2)]
    exact = torch.empty(size, dtype=torch.float64, device=DEVICE)
    plain.activate(x.double(), None if bias is None else bias.double(), gamma.double(), exact)
    plain.activate(x.clone(), bias, gamma, windows[0][:, :, 2:])
    TRITON.activate(x, bias, gamma, windows[1][:, :, 2:])
    assert (windows[1][:, :, :2] == 7).all()
    assert error(windows[1][:, :, 2:], exact) <= max(1.1 * error(windows[0][:, :, 2:], exact), 1e-6)


@each_dtype
@each_size
@pytest.mark.parametrize("with_bias", [False, True])
def test_push(size: tuple[int, ...], with_bias: bool, dtype: torch.dtype) -> None:
    """Bit for bit what `activate` gives, behind two frames that have moved up."""
    batch, channels, _, height, width = size
    frames, gamma = drawn(batch, channels, 5, height, width, dtype=dtype), drawn(channels, 1, 1, 1, dtype=dtype, seed=1)
    bias = drawn(channels, dtype=dtype, seed=2) if with_bias else None
    expected = torch.empty_like(frames)
    TRITON.activate(frames, bias, gamma, expected)
    planes = torch.zeros(batch, 3 * channels, height, width, dtype=dtype, device=DEVICE)
    planes = planes.contiguous(memory_format=torch.channels_last)
    for index in range(5):
        TRITON.push(frames[:, :, index : index + 1], bias, gamma, planes)
    assert torch.equal(planes, torch.cat([expected[:, :, index] for index in (2, 3, 4)], dim=1))


@each_dtype
@each_size
def test_add(size: tuple[int, ...], dtype: torch.dtype) -> None:
    h, x, bias = drawn(*size, dtype=dtype), drawn(*size, dtype=dtype, seed=1), drawn(size[1], dtype=dtype, seed=2)
    exact = plain.add(h.double(), bias.double(), x.double())
    assert error(TRITON.add(h.clone(), bias, x), exact) <= max(1.1 * error(plain.add(h, bias, x), exact), 1e-6)


@each_dtype
@pytest.mark.parametrize(("frames", "channels", "height", "width"), [(1, 384, 9, 16), (3, 192, 5, 7), (2, 24, 6, 33)])
def test_enlarge(frames: int, channels: int, height: int, width: int, dtype: torch.dtype) -> None:
    """Merged weights round once more than those of the checkpoint."""
    x = drawn(frames, channels, height, width, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = drawn(channels // 2, channels, 3, 3, dtype=dtype, seed=1) / channels**0.5
    bias = drawn(channels // 2, dtype=dtype, seed=2)
    exact = plain.enlarge(x.double(), weight.double(), bias.double())
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        got, usual = TRITON.enlarge(x, TRITON.prepare(weight), bias), plain.enlarge(x, weight, bias)
    assert got.shape == usual.shape
    assert error(got, exact) <= max(1.5 * error(usual, exact), 2e-6)


def built(kernels: VaeKernels, dtype: torch.dtype) -> WanVae:
    spec = VaeSpec(dim=32)
    vae = WanVae(spec, kernels)
    vae.load_state_dict(random_vae(spec).state_dict())
    return vae.requires_grad_(False).to(DEVICE, dtype)


@torch.no_grad()
def test_a_decode_and_an_encode_err_as_plain_pytorch_does() -> None:
    size = (2, 3) if IS_INTERPRETED else (20, 28)
    latent, video = draw(2, 16, 3, *size).to(DEVICE), draw(1, 3, 9, 8 * size[0], 8 * size[1], seed=1).to(DEVICE)
    kernels = (plain.TORCH, TRITON, replace(TRITON, forms=replace(TRITON.forms, stacks=plain.never)))
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        exact = built(plain.TORCH, torch.float64)
        decoded, encoded = exact.decode(latent.double()), exact.encode(video.double())
        for dtype in DTYPES:
            usual, *others = (built(each, dtype) for each in kernels)
            for other in others:
                assert error(other.decode(latent), decoded) <= 1.1 * max(error(usual.decode(latent), decoded), 3e-6)
                assert error(other.encode(video), encoded) <= 1.1 * max(error(usual.encode(video), encoded), 3e-6)
