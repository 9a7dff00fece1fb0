"""The block's kernels by name, tried once before they are bound."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .block import TORCH, BlockKernels

# Rounding once, to bfloat16, is 4e-3 at most; a kernel that is wrong loses all.
_TOLERANCE = 1e-2


def bind_kernels(name: str, device: str) -> tuple[BlockKernels, str | None]:
    """The kernels, or PyTorch's operators and the reason why it is those. name: "off" or "triton"."""
    if name == "off":
        return TORCH, None
    assert name == "triton", name
    try:
        from triton.errors import TritonError

        from .triton_block import TRITON
    except (ImportError, OSError, RuntimeError, AttributeError) as error:  # another version of Triton lacks a name
        return TORCH, _reason(error)
    try:
        problem = next(_differences(TRITON, torch.device(device)), None)
    except (TritonError, ImportError, OSError, RuntimeError) as error:
        problem = _reason(error)
    return (TRITON, None) if problem is None else (TORCH, problem)


@torch.inference_mode()
def _differences(kernels: BlockKernels, device: torch.device) -> Iterator[str]:
    """Whatever they compute otherwise than PyTorch's operators on a few tokens."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, generator=generator)

    x, branch, weight, (scale, shift, gate) = draw(1, 3, 256), draw(1, 3, 256).bfloat16(), draw(256), draw(3, 1, 1, 256)
    tables, dtype = tuple(draw(2, 3, 1, 64)), torch.bfloat16
    linear = nn.Linear(256, 128, device=device, dtype=dtype)
    for name, *arguments in (
        ("norm", x, scale, shift, 1e-6, dtype),
        ("add", x, branch, gate),
        ("add_norm", x, branch, None, scale, shift, 1e-6, dtype),
        ("rms_norm", branch, weight, 2, tables, 1e-6, dtype),
        ("expand", linear, branch),
    ):
        got, expected = (_flat(getattr(each, name)(*arguments)) for each in (kernels, TORCH))
        error = float((got - expected).norm() / expected.norm())
        if not error <= _TOLERANCE:  # also where it is not a number
            yield f"{name} differs from PyTorch's by {error:.1e}"


def _flat(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    tensors = result if isinstance(result, tuple) else (result,)
    return torch.cat([tensor.float().flatten() for tensor in tensors])


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
