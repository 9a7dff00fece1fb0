"""Kernels by name, tried once before they are bound."""

from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import BROKEN_LIBRARY
from . import block, vae
from .block import BlockKernels
from .decode import KNOWN_BLOCKS
from .vae import VaeKernels

# Rounding once, to bfloat16, is 4e-3 at most; a kernel that is wrong loses all.
_TOLERANCE = 1e-2

Kernels = TypeVar("Kernels", BlockKernels, VaeKernels)
Results = dict[str, Tensor]


def bind_kernels(name: str, device: str, forms: Collection[str] = ()) -> tuple[BlockKernels, str | None]:
    """The block's kernels, or PyTorch's operators and the reason why it is those. name: "off" or "triton".

    forms: of codes that they will have to decode, as in `decode.decode`.
    """

    def load() -> BlockKernels:
        from .triton_block import TRITON

        return TRITON

    return _bind(name, block.TORCH, load, lambda kernels: _try_block(kernels, torch.device(device), forms))


def bind_vae_kernels(name: str, device: str) -> tuple[VaeKernels, str | None]:
    """The same for the VAE's."""

    def load() -> VaeKernels:
        from .triton_vae import TRITON

        return TRITON

    return _bind(name, vae.TORCH, load, lambda kernels: _try_vae(kernels, torch.device(device)))


def _bind(
    name: str, plain: Kernels, load: Callable[[], Kernels], run: Callable[[Kernels], Results]
) -> tuple[Kernels, str | None]:
    if name == "off":
        return plain, None
    assert name == "triton", name
    try:
        from triton.errors import TritonError

        kernels = load()
    except BROKEN_LIBRARY as error:  # or another version of Triton, which lacks a name
        return plain, _reason(error)
    try:
        with torch.inference_mode():
            problem = next(_differences(run(kernels), run(plain)), None)
    except (TritonError, ImportError, OSError, RuntimeError) as error:
        problem = _reason(error)
    return (kernels, None) if problem is None else (plain, problem)


def _differences(found: Results, expected: Results) -> Iterator[str]:
    """Whatever was computed otherwise than by PyTorch's operators."""
    for name, got in found.items():
        error = float((got.float() - expected[name].float()).norm() / expected[name].float().norm())
        if not error <= _TOLERANCE:  # also where it is not a number
            yield f"{name} differs from PyTorch's by {error:.1e}"


def _drawing(device: torch.device) -> Callable[..., Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    return lambda *shape: torch.randn(shape, device=device, generator=generator)


def _try_block(kernels: BlockKernels, device: torch.device, forms: Collection[str]) -> Results:
    """What they make of a few tokens."""
    draw, dtype = _drawing(device), torch.bfloat16
    x, branch, weight, (scale, shift, gate) = draw(1, 3, 256), draw(1, 3, 256).to(dtype), draw(256), draw(3, 1, 1, 256)
    tables = tuple(draw(2, 3, 1, 64))
    linear = nn.Linear(256, 128, device=device, dtype=dtype)
    linear.weight.copy_(draw(128, 256) / 16)
    linear.bias.copy_(draw(128))
    kept, normed = kernels.add_norm(x, branch, None, scale, shift, 1e-6, dtype)
    return {
        "norm": kernels.norm(x, scale, shift, 1e-6, dtype),
        "add": kernels.add(x, branch, gate),
        "add_norm": torch.cat((kept.float(), normed.float())),
        "rms_norm": kernels.rms_norm(branch, weight, 2, tables, 1e-6, dtype),
        "expand": kernels.expand(linear, branch),
        **{f"decode {form}": _decoded(kernels, form, draw(48, 256)) for form in forms},
    }


def _decoded(kernels: BlockKernels, form: str, drawn: Tensor) -> Tensor:
    """Numbers (48, 256) of any codes."""
    weights = torch.empty_like(drawn, dtype=torch.bfloat16)
    if known := KNOWN_BLOCKS.get(form):
        # Bytes below 60 are no part of a float16 that is infinite, not a number, or negative.
        codes = drawn.repeat(1, 2)[:, : 256 // known.size * known.nbytes].abs().mul(20).clamp(max=59).to(torch.uint8)
        kernels.decode(weights, codes, None, form)
    else:
        kernels.decode(weights, (drawn * 30).to(getattr(torch, form)), 1 + drawn[:, 0].abs(), form)
    return weights


def _try_vae(kernels: VaeKernels, device: torch.device) -> Results:
    """What they make of two small frames."""
    draw, dtype, layout = _drawing(device), torch.bfloat16, torch.channels_last_3d
    x, h = (draw(1, 24, 2, 3, 5).to(dtype).contiguous(memory_format=layout) for _ in range(2))
    gamma, bias, weight = draw(24, 1, 1, 1), draw(24), draw(12, 24, 3, 3) / 15
    gamma, bias, weight = gamma.to(dtype), bias.to(dtype), weight.to(dtype)
    out = torch.empty_like(x)
    kernels.activate(h.clone(), bias, gamma, out)
    planes = draw(1, 72, 3, 5).to(dtype).contiguous(memory_format=torch.channels_last)
    kernels.push(h[:, :, :1].clone(), bias, gamma, planes)
    frames = x[0].movedim(1, 0).contiguous(memory_format=torch.channels_last)
    return {
        "activate": out,
        "push": planes,
        "add": kernels.add(h, bias, x),
        "enlarge": kernels.enlarge(frames, kernels.prepare(weight), bias[:12].contiguous()),
    }


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
