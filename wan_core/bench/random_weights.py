"""Random weights by official name: the same numbers for every contestant, drawn where they are needed.

A tensor's numbers depend on its official name and its shape alone, and are rounded to bfloat16, so that two modules
that hold them under different names and in different dtypes are the same model. The scales keep activations of order
one: nothing is zero, infinite, or cheap to multiply (a GPU draws less power, and runs faster, on zeros).
"""

import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoint.encoding import Encoding
from ..checkpoint.header import TensorInfo
from ..checkpoint.inventory import Shapes
from ..checkpoint.read import Checkpoint
from ..checkpoint.stream import Reader

# Drawn so many at a time, so that the float32 numbers in between take little beside the tensor.
_PIECE = 2**26
_NOWHERE = Path("random weights")


def fill(name: str, target: Tensor) -> None:
    """Overwrite a contiguous tensor of any float dtype with the numbers of an official name."""
    mean, std = moments(name, tuple(target.shape))
    generator = torch.Generator(target.device).manual_seed(zlib.crc32(name.encode()))
    with torch.no_grad():
        for piece in target.view(-1).split(_PIECE):
            drawn = torch.randn(piece.numel(), generator=generator, device=target.device)
            piece.copy_(drawn.mul_(std).add_(mean).to(torch.bfloat16))


def moments(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation by what a tensor is for."""
    parts = name.split(".")
    if parts[-1] == "bias":
        return 0.0, 0.05
    if parts[-1] == "modulation":
        return 0.0, 0.3
    if parts[-1] == "gamma" or (len(shape) == 1 and any(part.startswith("norm") for part in parts)):
        return 1.0, 0.1
    if len(shape) == 2 and parts[-2].endswith("embedding"):
        return 0.0, 1.0  # a table that is looked up (words, relative positions), not multiplied
    fan_in = max(torch.Size(shape[1:]).numel(), 1)
    # UMT5 does not divide its scores by the root of the head's width, 8: its queries are small instead.
    sharpness = 0.25 if name.endswith(".attn.q.weight") else 1.0
    return 0.0, sharpness * fan_in**-0.5


def fill_module(module: nn.Module, to_official: Callable[[str], str | None]) -> None:
    """Make a module ready to be run, with numbers in every parameter; `to_official` translates its names."""
    module.eval().requires_grad_(requires_grad=False)
    for name, parameter in module.named_parameters():
        official = to_official(name)
        assert official is not None, f"no official name for {name}"
        fill(official, parameter.data)


class RandomCheckpoint(Checkpoint):
    """A checkpoint without a file."""

    __slots__ = ()

    def reader(self) -> "RandomReader":
        return RandomReader()


class RandomReader(Reader):
    """Draws what it is asked for."""

    def __init__(self) -> None:
        super().__init__({})

    def fill(self, info: TensorInfo, target: Tensor) -> None:
        fill(info.stored_as, target)


def random_checkpoint(shapes: Shapes) -> RandomCheckpoint:
    """A checkpoint in bfloat16 with tensors of these names and shapes."""
    tensors, start = {}, 0
    for name, shape in shapes.items():
        nbytes = 2 * torch.Size(shape).numel()
        tensors[name] = TensorInfo(
            shape=shape, dtype="bfloat16", nbytes=nbytes, file=_NOWHERE, stored_as=name, start=start
        )
        start += nbytes
    return RandomCheckpoint(
        path=_NOWHERE, layout="file", tensors=tensors, metadata={}, config={}, namings=(), stamps={},
        format="random numbers", encoding=Encoding(),
    )  # fmt: skip
