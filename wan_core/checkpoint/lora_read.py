"""The numbers of changes, out of their files: float32 on any device, without their scales.

For a change that stands beside a layer its factors are read; for one that is merged, the parameter with all of its
changes added in the order of the chain, in float32, to be rounded once by whoever stores it.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType

import torch
from torch import Tensor

from ..linear.changes import decomposed, full_change
from .header import TensorInfo
from .lora_file import Change, LoraFile
from .stream import Reader, empty

# LoHa's parts go by shorter names in the algebra.
_HADAMARD = {"hada_w1_a": "w1_a", "hada_w1_b": "w1_b", "hada_w2_a": "w2_a", "hada_w2_b": "w2_b"}


class LoraReaders:
    """One reader for each LoRA file, opened when it is first needed: its buffers serve all of the file's changes."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._readers: dict[LoraFile, Reader] = {}

    def __enter__(self) -> "LoraReaders":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._readers.clear()
        self._open.close()

    def parts(self, lora: LoraFile, change: Change, device: torch.device | str) -> dict[str, Tensor]:
        """The parts of a change by the names of `linear.changes`."""
        return {_HADAMARD.get(role, role): self._read(lora, info, device) for role, info in change.parts.items()}

    def merged(self, parameter: Tensor, changes: Sequence[tuple[LoraFile, Change, float]]) -> Tensor:
        """A float32 parameter with changes (file, change, strength), each added to the result of those before it."""
        assert parameter.dtype == torch.float32, f"merging is float32 arithmetic, got {parameter.dtype}"
        for lora, change, strength in changes:
            added = full_change(change.kind, self.parts(lora, change, parameter.device)) * change.scale
            if change.magnitude is None:
                parameter = parameter + strength * added.reshape(parameter.shape)
                continue
            weight = parameter.flatten(1)
            magnitude = self._read(lora, change.magnitude, parameter.device)
            moved = decomposed(weight, added, magnitude)
            parameter = (weight + strength * (moved - weight)).reshape(parameter.shape)
        return parameter

    def _read(self, lora: LoraFile, info: TensorInfo, device: torch.device | str) -> Tensor:
        if lora not in self._readers:
            self._readers[lora] = self._open.enter_context(lora.checkpoint.reader())
        # An ordinary tensor, also where a run in inference mode asks for it: parameters are made of it.
        with torch.inference_mode(mode=False):
            target = empty(info, device, torch.float32)
        self._readers[lora].fill(info, target)
        return target
