"""From a checkpoint into a module's parameters: straight into the memory and the dtype that they will have.

Beyond that memory a few megabytes are needed (`stream.py`). Whose memory it is, and what becomes of it when something
ends a load early (a damaged file, an interrupt raised by `on_progress`), is its owner's concern (`offload.weights`).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .decode import is_stored_as, why_not
from .header import TensorInfo
from .read import Checkpoint
from .sentences import counted, quoted
from .stream import Reader, empty

# Changes a parameter on its way: the float32 value from the file -> the float32 value that is rounded and stored.
Edit = Callable[[Tensor], Tensor]
_NO_EDITS: Mapping[str, Edit] = MappingProxyType({})


class ParameterSource:
    """The parameters of a module in a checkpoint: any of them, at any time, into memory that is given.

    work_on: the device that decodes and edits, where the memory itself is the host's.
    """

    def __init__(self, module: nn.Module, checkpoint: Checkpoint, work_on: torch.device | str) -> None:
        self._module = module
        self._checkpoint = checkpoint
        self._work_on = torch.device(work_on)
        self._infos: Mapping[str, TensorInfo] | None = None

    def fill(
        self,
        targets: Mapping[str, Tensor],
        on_progress: Callable[[int, int], None] | None = None,
        edits: Mapping[str, Edit] = _NO_EDITS,
    ) -> None:
        """Read some parameters, by name, into contiguous tensors of their shapes, of any float dtype and device.

        on_progress is called with (bytes done, bytes in all) of the file after each tensor; it may raise. edits: by
        name, for parameters that are not stored as they are read. Raises `CheckpointError` where names or shapes of the
        whole module do not match, before anything is read.
        """
        if self._infos is None:
            self._infos = _matched(dict(self._module.named_parameters()), self._checkpoint)
        wanted = {name: self._infos[name] for name in targets}
        total, done = sum(info.nbytes for info in wanted.values()), 0
        with torch.inference_mode(mode=False), self._checkpoint.reader() as reader:
            for name, info in _in_file_order(wanted):
                self._fill(reader, info, targets[name].data, edits.get(name))
                done += info.nbytes
                if on_progress is not None:
                    on_progress(done, total)

    def _fill(self, reader: Reader, info: TensorInfo, target: Tensor, edit: Edit | None) -> None:
        if edit is None and (target.device.type == self._work_on.type or is_stored_as(info, target.dtype)):
            reader.fill(info, target)
        else:
            target.copy_(_read(reader, info, self._work_on, target.dtype, edit))


def _in_file_order(wanted: Mapping[str, TensorInfo]) -> list[tuple[str, TensorInfo]]:
    """The order that a disk is fast in."""
    return sorted(wanted.items(), key=lambda item: (item[1].file, item[1].start))


def _read(
    reader: Reader, info: TensorInfo, device: torch.device | str, dtype: torch.dtype, edit: Edit | None
) -> Tensor:
    target = empty(info, device, dtype if edit is None else torch.float32)
    reader.fill(info, target)
    return target if edit is None else edit(target).to(dtype)


def _matched(parameters: Mapping[str, Tensor], checkpoint: Checkpoint) -> Mapping[str, TensorInfo]:
    """The tensor of each parameter; raises `CheckpointError` with how many do not fit, and the first of them."""
    tensors = checkpoint.tensors
    if missing := [name for name in parameters if name not in tensors]:
        raise CheckpointError(
            f"{checkpoint.label} lacks {len(missing)} of the {len(parameters)} tensors that the model needs, the first "
            f"is {quoted(missing[0])}"
        )
    if wrong := [name for name, parameter in parameters.items() if tensors[name].shape != tuple(parameter.shape)]:
        first = wrong[0]
        raise CheckpointError(
            f"{checkpoint.label} holds {counted(len(wrong), 'tensor')} of another shape than the model's, the first is "
            f"{quoted(first)}: {tensors[first].shape}, expected {tuple(parameters[first].shape)}"
        )
    if encoded := [name for name, parameter in parameters.items() if _is_undecodable(tensors[name], parameter)]:
        first = encoded[0]
        raise CheckpointError(
            f"{checkpoint.label} {why_not(tensors[first])}: {counted(len(encoded), 'tensor')}, the first is "
            f"{quoted(first)}"
        )
    if unexpected := _unexpected(parameters, checkpoint):
        raise CheckpointError(
            f"{checkpoint.label} holds {counted(len(unexpected), 'tensor')} that the model has no place for, the "
            f"first is {quoted(unexpected[0])}"
        )
    return {name: tensors[name] for name in parameters}


def _is_undecodable(info: TensorInfo, parameter: Tensor) -> bool:
    # Codes go into a module that decodes them as they are.
    return not is_stored_as(info, parameter.dtype) and why_not(info) is not None


def _unexpected(parameters: Mapping[str, Tensor], checkpoint: Checkpoint) -> list[str]:
    """Tensors of this kind of model that the module lacks; a file may hold other kinds beside it."""
    for table in (naming.table for naming in checkpoint.namings):
        if all(table.from_official(name) for name in parameters):
            return [name for name in checkpoint.tensors if name not in parameters and table.from_official(name)]
    return []
