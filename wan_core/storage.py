"""Weights that stay as their files store them: which layers can, and the layers that decode them before each product.

`storable` is the pure half, from headers alone: the plan decides with it and counts its bytes. `keep_as_stored` is the
built half. Both experts keep the same layers in the same codes, because one's memory becomes the other's at the switch.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from .checkpoint.codes import Coding, coding_of
from .checkpoint.experts import ExpertPair
from .checkpoint.lora_file import block_linears
from .checkpoint.sentences import counted
from .kernels.block import TORCH, BlockKernels
from .linear.stored import Storage, StoredLinear
from .meta import without_numbers

# Linear layers outside of the blocks: two that embed the text, three for the timestep, the head. They are decoded.
_OUTSIDE = 6
_OTHERWISE = "stored in another way by the other expert's file"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLayers:
    """Linear layers of both experts by their official names, and how they are stored.

    num_linears: of one expert. left: why layers that a file encodes are not among them, one clause each.
    """

    codings: tuple[tuple[str, Coding], ...] = ()
    num_linears: int = 0
    left: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.codings)

    @property
    def layouts(self) -> tuple[Mapping[str, Coding], ...]:
        """What the blocks hold, each kind once: layers by their names in the block."""
        blocks: dict[str, dict[str, Coding]] = {}
        for layer, coding in self.codings:
            _, index, name = layer.split(".", 2)
            blocks.setdefault(index, {})[name] = coding
        kinds = {tuple(block.items()): block for block in blocks.values()}
        return tuple(kinds.values())

    def without(self, layers: Collection[str], reason: str) -> "StoredLayers":
        """These but for some layers."""
        kept = tuple((layer, coding) for layer, coding in self.codings if layer not in layers)
        if len(kept) == len(self.codings):
            return self
        why = f"{counted(len(self.codings) - len(kept), 'layer')} {reason}"
        return replace(self, codings=kept, left=(*self.left, why))

    def __str__(self) -> str:
        """For example "float8_e4m3fn in 400 of 406 linear layers"."""
        counts = Counter(coding.dtype for _, coding in self.codings).most_common()
        return " and ".join(f"{dtype} in {count} of {self.num_linears} linear layers" for dtype, count in counts)


NOTHING_STORED = StoredLayers()


def storable(pair: ExpertPair) -> StoredLayers:
    """The layers that can stay as both files store them."""
    linears = block_linears(pair.spec)
    codings, unlike = [], 0
    for layer in linears:
        high, low = (coding_of(checkpoint.tensors[f"{layer}.weight"]) for checkpoint in (pair.high, pair.low))
        if high is not None and high == low:
            codings.append((layer, high))
        unlike += high != low
    left = (f"{counted(unlike, 'layer')} {_OTHERWISE}",) if unlike else ()
    return StoredLayers(codings=tuple(codings), num_linears=len(linears) + _OUTSIDE, left=left)


def keep_as_stored(
    module: nn.Module, layers: Mapping[str, Coding], dtype: torch.dtype, kernels: BlockKernels = TORCH
) -> None:
    """Put layers that keep codes in the place of some linear layers of a module on the meta device."""
    for name, coding in layers.items():
        linear = module.get_submodule(name)
        shape = (linear.out_features, linear.in_features)
        storage = Storage(
            codes=coding.codes_shape(shape),
            dtype=getattr(torch, coding.codes_dtype),
            scale=coding.scale,
            form=coding.dtype,
            decode=kernels.decode,
        )
        with without_numbers():
            stored = StoredLinear(linear.in_features, linear.out_features, storage, dtype, bias=linear.bias is not None)
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, stored)
