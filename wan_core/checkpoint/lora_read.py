"""The numbers of a change, out of its file: float32 on any device, with its scale or without.

For a change that stands beside a layer its factors are read; for one that is merged, the parameter with all of its
changes added in the order of the chain, in float32, to be rounded once by whoever stores it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..linear.changes import decomposed, full_change
from .header import TensorInfo
from .lora_file import Change, LoraFile
from .stream import empty

# LoHa's parts go by shorter names in the algebra.
_HADAMARD = {"hada_w1_a": "w1_a", "hada_w1_b": "w1_b", "hada_w2_a": "w2_a", "hada_w2_b": "w2_b"}


def read_parts(lora: LoraFile, change: Change, device: torch.device | str) -> dict[str, Tensor]:
    """The parts of a change by the names of `linear.changes`, without its scale."""
    parts = {_HADAMARD.get(role, role): info for role, info in change.parts.items()}
    return _read(lora, parts, device)


def merged(parameter: Tensor, changes: Sequence[tuple[LoraFile, Change, float]]) -> Tensor:
    """A float32 parameter with changes (file, change, strength), each added to the result of those before it."""
    assert parameter.dtype == torch.float32, f"merging is float32 arithmetic, got {parameter.dtype}"
    for lora, change, strength in changes:
        added = full_change(change.kind, read_parts(lora, change, parameter.device)) * change.scale
        if change.magnitude is None:
            parameter = parameter + strength * added.reshape(parameter.shape)
            continue
        weight = parameter.flatten(1)
        magnitude = _read(lora, {"magnitude": change.magnitude}, parameter.device)["magnitude"]
        moved = decomposed(weight, added, magnitude)
        parameter = (weight + strength * (moved - weight)).reshape(parameter.shape)
    return parameter


def _read(lora: LoraFile, infos: dict[str, TensorInfo], device: torch.device | str) -> dict[str, Tensor]:
    tensors = {}
    with lora.checkpoint.reader() as reader:
        for name, info in infos.items():
            tensors[name] = empty(info, device, torch.float32)
            reader.fill(info, tensors[name])
    return tensors
