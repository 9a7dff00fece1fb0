"""Reading tensors out of files, straight to their place, without a second copy of the model in memory.

A tensor is read in pieces with plain positioned reads. Nothing is mapped: what has been touched of a mapping counts as
our memory, and reading past the end of a mapped file that was cut short would end the process. What is stored as it
will be used on the host is read into its place; anything else goes through a buffer of a few megabytes.

On the way to a GPU pieces go through two pinned buffers. While one is copied, the other is read, so that the disk and
the bus work at the same time; casting and decoding is the device's work, in the order of its current stream. What
`fill` wrote is there for all later work on that stream, and for everybody once the reader is closed.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

from ..errors import CheckpointError
from .decode import decode_into, grain, is_stored_as, value_dtype, why_not
from .header import Stamp, TensorInfo
from .sentences import label, quoted

# Decoding takes several float32 numbers for each byte of a piece: small pieces on the host, where they stay in its
# caches; large ones for a GPU, where each copy and each kernel has its own cost.
_HOST_PIECE = 2**20
_DEVICE_PIECE = 32 * 2**20
# Two or more numbers share a byte: torch has no such tensors, or counts them otherwise.
_PACKED = ("float4_e2m1fn_x2", "float6_e2m3", "float6_e3m2")


class Reader:
    """Gives the tensors of files whose headers have been checked; a context manager.

    stamps: of the files when their headers were read; a file that has changed since is refused.
    """

    def __init__(self, stamps: Mapping[Path, Stamp]) -> None:
        self._stamps = stamps
        self._path: Path | None = None
        self._file: BinaryIO | None = None
        self._buffers: dict[torch.device, _Buffers] = {}

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for buffers in self._buffers.values():
            buffers.wait()
        self._buffers.clear()
        if self._file is not None:
            self._file.close()
        self._path = self._file = None

    def fill(self, info: TensorInfo, target: Tensor) -> None:
        """Write a tensor into `target`: contiguous, of the same shape, of any float dtype, on any device."""
        if reason := _obstacle(info, target):
            raise CheckpointError(f"{label(info.file)} {reason} (tensor {quoted(info.stored_as)})")
        assert target.shape == info.shape and target.is_contiguous(), "a target of the tensor's own shape"
        if not target.numel():
            return
        try:
            if target.device.type == "cpu" and is_stored_as(info, target.dtype):
                self._read(info, 0, target.view(-1).view(torch.uint8))
            else:
                self._decode_into(info, target)
        except OSError as error:
            raise CheckpointError(
                f"tensor {quoted(info.stored_as)} of {label(info.file)} cannot be read: {error.strerror or error}"
            ) from error

    def _decode_into(self, info: TensorInfo, target: Tensor) -> None:
        unit, flat = grain(info), target.view(-1)
        scale = self._scale(info.scale, target.device)
        buffers = self._buffers_for(target.device)
        # A single grain is never more than a row, but that may be more than a piece.
        step = max(buffers.size // unit.nbytes, 1)
        num_grains = target.numel() // unit.size
        for first in range(0, num_grains, step):
            last = min(first + step, num_grains)
            piece = buffers.next((last - first) * unit.nbytes)
            self._read(info, first * unit.nbytes, piece)
            place = flat[first * unit.size : last * unit.size]
            if is_stored_as(info, target.dtype):
                place.copy_(piece.view(target.dtype), non_blocking=True)
            else:
                decode_into(place, piece.to(target.device, non_blocking=True), info, scale, first)
            buffers.sent()

    def _scale(self, info: TensorInfo | None, device: torch.device) -> Tensor | None:
        if info is None:
            return None
        scale = torch.empty(info.shape, dtype=torch.float32)
        self.fill(info, scale)
        return scale.view(-1).to(device)

    def _read(self, info: TensorInfo, start: int, piece: Tensor) -> None:
        """Fill `piece` (n,) uint8 on the host with the bytes of a tensor from `start` on."""
        file = self._open(info.file)
        file.seek(info.start + start)
        rest = memoryview(piece.numpy())
        while rest:
            count = file.readinto(rest)
            if not count:
                raise CheckpointError(f"{label(info.file)} has become shorter since it was opened; open it again")
            rest = rest[count:]

    def _open(self, path: Path) -> BinaryIO:
        if self._file is None or path != self._path:
            if self._file is not None:
                self._file.close()
            self._path, self._file = path, path.open("rb", buffering=0)
            if Stamp.of(os.fstat(self._file.fileno())) != self._stamps[path]:
                raise CheckpointError(f"{label(path)} has changed since it was opened; open it again")
        return self._file

    def _buffers_for(self, device: torch.device) -> "_Buffers":
        if device not in self._buffers:
            self._buffers[device] = _Buffers(device)
        return self._buffers[device]


class _Buffers:
    """Host memory that pieces pass through: two pinned buffers in turn for CUDA, one ordinary buffer otherwise."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._is_pinned = device, device.type == "cuda"
        self.size = _DEVICE_PIECE if self._is_pinned else _HOST_PIECE
        self._buffers = [self._new(self.size) for _ in range(2 if self._is_pinned else 1)]
        self._copied: list[torch.cuda.Event | None] = [None] * len(self._buffers)
        self._turn = 0

    def next(self, nbytes: int) -> Tensor:
        """The next buffer, (nbytes,) uint8, once what it held last has left it."""
        self._turn = (self._turn + 1) % len(self._buffers)
        if copied := self._copied[self._turn]:
            copied.synchronize()
        if nbytes > self._buffers[self._turn].numel():
            self._buffers[self._turn] = self._new(nbytes)
        return self._buffers[self._turn][:nbytes]

    def sent(self) -> None:
        """The copy of the current buffer is on its way, and what decodes it."""
        if self._is_pinned:
            self._copied[self._turn] = torch.cuda.current_stream(self._device).record_event()

    def wait(self) -> None:
        """Until all copies have arrived."""
        for copied in self._copied:
            if copied is not None:
                copied.synchronize()

    def _new(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=self._is_pinned)


def empty(info: TensorInfo, device: torch.device | str, dtype: torch.dtype | None) -> Tensor:
    """An uninitialised tensor for `Reader.fill`; without a dtype, one that holds the tensor as it is stored."""
    if dtype is None and info.dtype in _PACKED:
        raise CheckpointError(f"tensor {quoted(info.stored_as)} of {label(info.file)} is packed {info.dtype}")
    return torch.empty(info.shape, device=device, dtype=dtype or value_dtype(info))


def _obstacle(info: TensorInfo, target: Tensor) -> str | None:
    # Bytes that are no weights (a vocabulary) go as they are.
    return None if is_stored_as(info, target.dtype) else why_not(info)
