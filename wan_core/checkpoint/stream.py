"""Reading tensors out of safetensors files, straight to their place, without a second copy of the model in memory.

`safe_open` maps a file, and a tensor of it is a view of that mapping. What has been touched of a mapping counts as our
memory until the mapping is closed, so a file that is copied out of its mapping would be in memory twice. Tensors are
therefore copied in pieces, and the mapping is opened anew between them: 0.2 ms each time, for a thousand tensors.
"""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError
from .header import Stamp, TensorInfo
from .sentences import label, quoted

_MIN_WINDOW = 8 * 2**20
_WINDOWS = 32
# Two or more elements share a byte: torch has no arithmetic for them.
_PACKED = ("float4_e2m1fn_x2", "float6_e2m3", "float6_e3m2")


class Reader(Protocol):
    """What a format implements to give its tensors: a context manager whose `fill` is called tensor by tensor."""

    def __enter__(self) -> "Reader": ...

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def fill(self, info: TensorInfo, target: Tensor) -> None:
        """Write a tensor into `target`: contiguous, of the same shape, of any float dtype, on any device."""


class SafetensorsReader:
    """Reads from safetensors files whose headers have been checked.

    stamps: of the files when their headers were read; a file that has changed since is refused, because reading past
    the end of a mapped file would end the process. nbytes: of the whole checkpoint; 1/32 of it is mapped at a time.
    """

    def __init__(self, stamps: Mapping[Path, Stamp], nbytes: int) -> None:
        self._stamps = stamps
        self._window = max(_MIN_WINDOW, nbytes // _WINDOWS)
        self._file: Path | None = None
        self._handle: safe_open | None = None
        self._touched = 0

    def __enter__(self) -> "SafetensorsReader":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()

    def fill(self, info: TensorInfo, target: Tensor) -> None:
        if info.dtype in _PACKED:
            raise CheckpointError(f"tensor {quoted(info.stored_as)} of {label(info.file)} is packed {info.dtype}")
        assert target.shape == info.shape and target.is_contiguous(), "a target of the tensor's own shape"
        count = target.numel()
        if not count:
            return
        itemsize = info.nbytes // count
        step = self._window // itemsize
        flat = target.view(-1)
        try:
            for start in range(0, count, step):
                stop = min(start + step, count)
                self._map(info.file, (stop - start) * itemsize)
                # A view of the file. Casting is the destination's work: a GPU does it faster than the host.
                piece = self._handle.get_tensor(info.stored_as).view(-1)[start:stop]
                flat[start:stop].copy_(piece.to(target.device))
                del piece
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"tensor {quoted(info.stored_as)} of {label(info.file)} cannot be read: {error}"
            ) from error

    def _map(self, file: Path, nbytes: int) -> None:
        """Have `file` mapped, with room for `nbytes` more before the mapping is given up."""
        if file != self._file or self._touched + nbytes > self._window:
            self._close()
            if Stamp.of(file.stat()) != self._stamps[file]:
                raise CheckpointError(f"{label(file)} has changed since it was opened; open it again")
            self._handle = safe_open(file, framework="pt", device="cpu").__enter__()
            self._file = file
        self._touched += nbytes

    def _close(self) -> None:
        if self._handle is not None:
            self._handle.__exit__(None, None, None)
        self._handle, self._file, self._touched = None, None, 0


def empty(info: TensorInfo, device: torch.device | str, dtype: torch.dtype | None) -> Tensor:
    """An uninitialised tensor for `Reader.fill`, of the stored dtype unless another is given."""
    return torch.empty(info.shape, device=device, dtype=dtype or getattr(torch, info.dtype))
