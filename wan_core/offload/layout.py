"""How the tensors of a module lie in memory: one piece for each unit that moves as a whole.

A unit is a block of `module.blocks`, or the rest of the module. All of its tensors are views of one piece of memory, so
that moving a block is one copy, and one block's place serves for any other of the same layout. Tensors that belong to
no checkpoint (what stands beside the layers) make a unit of their own: they come and go with LoRAs, the others do not.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

# Kernels and copies want their operands at multiples of 16 bytes; compiled code assumes that what was aligned stays so.
_ALIGNMENT = 256
_NO_BLOCK = -1


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor's place in its unit."""

    name: str
    shape: torch.Size
    dtype: torch.dtype
    offset: int
    is_parameter: bool

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """Tensors that move together. block: its index in `module.blocks`, `None` for what belongs to no block."""

    block: int | None
    is_beside: bool
    slots: tuple[Slot, ...]
    nbytes: int

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(slot.name for slot in self.slots)

    def part(self, names: Collection[str]) -> "Unit":
        """Some of its tensors, as a unit of their own."""
        chosen = [slot for slot in self.slots if slot.name in names]
        return _laid_out(self.block, chosen, is_beside=self.is_beside)

    def views(self, memory: Tensor) -> dict[str, Tensor]:
        """The tensors in a piece of memory (nbytes,) uint8, parameters as such."""
        # Ordinary tensors, also where a run in inference mode asks for them: they outlive it.
        with torch.inference_mode(mode=False):
            return {slot.name: _view(slot, memory) for slot in self.slots}


def units_of(module: nn.Module, is_beside: Callable[[str], bool]) -> tuple[Unit, ...]:
    """The rest of the module first, then its blocks in their order, then what is beside, each where there is any."""
    groups: dict[tuple[bool, int], list[Slot]] = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        beside = is_beside(name)
        slot = Slot(name, tensor.shape, tensor.dtype, offset=0, is_parameter=isinstance(tensor, nn.Parameter))
        groups.setdefault((beside, _NO_BLOCK if beside else _block_of(name)), []).append(slot)
    return tuple(
        _laid_out(None if block == _NO_BLOCK else block, groups[beside, block], is_beside=beside)
        for beside, block in sorted(groups)
    )


def _block_of(name: str) -> int:
    head, _, tail = name.partition(".")
    return int(tail.partition(".")[0]) if head == "blocks" else _NO_BLOCK


def _laid_out(block: int | None, slots: Iterable[Slot], *, is_beside: bool) -> Unit:
    placed, offset = [], 0
    for slot in slots:
        placed.append(replace(slot, offset=offset))
        offset += -(-slot.nbytes // _ALIGNMENT) * _ALIGNMENT
    return Unit(block=block, is_beside=is_beside, slots=tuple(placed), nbytes=offset)


def _view(slot: Slot, memory: Tensor) -> Tensor:
    view = memory[slot.offset : slot.offset + slot.nbytes].view(slot.dtype).view(slot.shape)
    return nn.Parameter(view, requires_grad=False) if slot.is_parameter else view
